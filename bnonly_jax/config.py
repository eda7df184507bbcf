"""The fields of an experiment, their defaults, and how they are read."""

import inspect
from typing import Any

import ml_collections

# Fields without influence on a run's state: where data lies, how it is read, and what is kept of
# the run. They may change when a run goes on. So may epochs, upwards.
FREE = ('data.dir', 'data.workers', 'data.worker_kind', 'eval_batch_size',
        'steps_per_call', 'log_every', 'eval_every', 'checkpoint_every', 'checkpoint_every_steps',
        'checkpoint_every_minutes', 'checkpoint_keep', 'checkpoint_keep_every')


class UserError(ValueError):
  """A mistake of the user's: one line with the value, what is allowed and what to do next."""


def default_config() -> ml_collections.ConfigDict:
  """Returns the paper's CIFAR-10 recipe (appendix of arXiv 2003.00152; defaults of open_lth)."""
  config = ml_collections.ConfigDict()

  # What trains: groups of parameters joined by + and -. The groups are batchnorm, gamma, beta,
  # output, shortcut, conv (every convolution but the shortcuts'), dense, attention, embedding,
  # other, all, nothing, norm:KIND (the norms of one kind: batch, layer, group, rms, instance), and
  # random:K, which is K weights of every output channel of every convolution. Each may have a
  # place: batchnorm@stage3, batchnorm@stage3/block2, batchnorm@last:4 (the last four norms).
  # subspace:K, without a place, is K coefficients for every such channel, of frozen random
  # directions (docs/random_features.md). Or a JSON list of rules,
  # [["norm1/scale$", true], ["", false]]: the first rule whose expression is found in a parameter's
  # name (--describe --names) says whether it trains.
  config.train = 'batchnorm'
  # cifar_resnetN[xK]: depth N = 6 D + 2, width K times 16. imagenet_resnetN[xK]: N = 18, 34, 50,
  # 101, 152 or 200, width K times 64. cifar_vggN: N = 11, 13, 16 or 19. docs/hosts.md has more. Or
  # a network of your own, my_package.my_file:make, where make(classes=...) returns a Linen module
  # (docs/networks.md).
  config.network = 'cifar_resnet14'
  # What normalises: batch, group (8 channels a group), layer (over an image), instance (over a
  # channel of an image), layer_channels (over a pixel), rms (over a pixel, without mean and bias),
  # ibn_a or ibn_b (batch and, in some places, instance) or none. In `train`, `batchnorm`, `gamma`
  # and `beta` mean the scale and bias of whichever it is.
  config.norm = 'batch'
  # What weighs the channels at the end of each residual block: none, se (se:R: R channels a hidden
  # unit), eca (eca:3,5,5,7: kernel sizes a stage), or ese.
  config.attention = 'none'
  # How weights start: he_normal, he_uniform, orthogonal, or binary (he_normal's sign times std).
  config.weight_start = 'he_normal'
  # Share of the weights of convolutions that is zero, at the start and for good, whatever trains;
  # 0: none. Which ones the seed says; the others are divided by the square root of their share.
  config.weight_sparsity = 0.0
  # With it: `uniform`, the same share of every kernel, or `erk`, a smaller one the smaller a kernel
  # is (Erdos-Renyi kernels, arXiv 1911.11134).
  config.weight_sparsity_layers = 'uniform'
  # Codes that stand for frozen kernels of convolutions, with a scale for each output channel, in
  # memory and in the workdir: 1 (the sign), 2, 4 or 8 bits, or 8-bit floats, e4m3 or e5m2; 0: none,
  # float32. Kernels that train start at what their codes would stand for.
  config.weight_bits = '0'
  # Rank of the convolutions' kernels as matrices [inputs, outputs], each then a product of two
  # normal ones; 0: full.
  config.weight_rank = 0
  # How gamma and beta start: uniform (U[0,1) and 0), one_zero (1 and 0), one_one (1 and 1) or
  # symmetric (U[-1,1) and 0).
  config.norm_start = 'uniform'
  # What to start from instead. WORKDIR[@STEP]: the parameters and BatchNorm statistics that another
  # run has in its folder, at its newest or the given checkpoint. Or a PyTorch state dict: a .npz,
  # .safetensors, .pt or .pth file with the names of open_lth's, torchvision's or other public code.
  config.init_from = ''
  # Initial values, order of the images and augmentation follow from the seed and nothing else.
  config.seed = 0
  # How many runs train together in one program, of the seeds seed, seed + 1, ... Each trains as it
  # would alone, and the results list each. The data must be resident and have their own labels. If
  # one run diverges, all of them stop; that seed can then be run alone. On a CPU this is no faster
  # than one run after the other.
  config.replicates = 1
  # Passes over the training images. May be raised in a run that is going on or finished.
  config.epochs = 160
  # Images in a training step, over all devices. What is left over at an epoch's end is dropped.
  config.batch_size = 128
  # Images in an evaluation step, over all devices; rounded up to a multiple of them.
  config.eval_batch_size = 500
  # Over how many images of the global batch BatchNorm takes its statistics: the batch is cut into
  # consecutive groups of so many. 0: the whole batch. The number of devices changes nothing.
  config.batchnorm_images = 0

  # Share of each training label that is spread evenly over all classes; 0: none. It changes the
  # loss that is trained on, and so train_loss; test_loss stays the plain cross-entropy.
  config.label_smoothing = 0.0
  # Who teaches the network, besides the labels: WORKDIR[@STEP] of another run, or of several with
  # commas between; '': no one. Their networks, in evaluation and frozen, see the images as
  # augmented, and what they put out is averaged as probabilities. Networks may be others; the
  # classes must be as many, and the images of the same shape. The run keeps a copy of them.
  config.teacher = ''
  # With a teacher: the share a of its term in the loss that is trained on, which is
  # (1 - a) * cross-entropy + a * temperature^2 * KL(teacher's || own probabilities).
  config.distill = 0.5
  # With a teacher: what the logits of both are divided by in that term.
  config.temperature = 4.0

  # In what images, activations and their gradients are computed: float32 or bfloat16. Statistics,
  # sums, logits, gamma and beta, and all that trains, stay in float32.
  config.compute_dtype = 'float32'
  # How exactly float32 numbers are multiplied: default, high or highest (jax.lax.Precision).
  # `default` is float32 on a CPU, TF32 on NVIDIA GPUs since Ampere, one pass of bfloat16 on a TPU;
  # `highest` is float32 on all of them.
  config.matmul_precision = 'default'
  # What the backward pass computes again instead of saving it: none, or block (residual blocks:
  # a third more time, a fraction of the memory).
  config.remat = 'none'
  # How many of a stage's equal residual blocks one turn of the loop over them holds; 0: chosen by
  # depth. Changes time, memory and rounding only.
  config.unroll = 0

  config.data = ml_collections.ConfigDict()
  # digits, cifar10_jpeg, the name of any prepared TFDS image classification data set, or
  # folder:PATH with images PATH/train/CLASS/* and PATH/test/CLASS/*.
  config.data.name = 'cifar10'
  # Folder that holds the prepared data sets; '' is TFDS's own: $TFDS_DATA_DIR or
  # ~/tensorflow_datasets.
  config.data.dir = ''
  # The split to test on; '' is test, or else validation or val.
  config.data.test_split = ''
  # Channels that the network sees: 1 (grey) or 3, converted if need be; 0: those of the data set.
  config.data.channels = 0
  # Side in pixels of the images that the network sees. 0: images stay as they are and must have one
  # size. Else training takes a random region of each image, resized to this, and evaluation takes
  # the centre.
  config.data.image_size = 0
  # With image_size: the random region's share of the area, uniform between these.
  config.data.crop_area = (0.1, 1.0)
  # With image_size: its ratio of width to height, log-uniform between these.
  config.data.crop_ratio = (0.8, 1.25)
  # With image_size: evaluation resizes the shorter side to this before it takes the centre.
  config.data.eval_resize = 256
  # A data set without image_size that takes up to so many GiB is kept whole on each device: it is
  # resident. A larger one is decoded on the host as training goes: it is streamed.
  config.data.resident_limit = 2.0
  # Streamed: batches decoded at the same time; 0: as many as there are cores, up to 32.
  config.data.workers = 0
  # Streamed: who decodes, threads or processes (which take some seconds to start).
  config.data.worker_kind = 'threads'
  # What a corrupt image or a label out of range does: stop, or skip (in training the next image of
  # the data set takes its place, evaluation leaves it out; both are counted).
  config.data.bad_images = 'stop'
  # Share of the training images that is used, chosen by the seed.
  config.data.subsample = 1.0
  # Share of the training labels that are replaced by classes drawn at random: once, before
  # training, by the seed.
  config.data.random_labels = 0.0
  # Augmentation: which of pad_crop, flip, randaugment, cutout and mixup, with commas between; done
  # in this order. '': none. Three may name numbers: cutout=16 (the square's side in pixels; alone:
  # half the image's), mixup=0.2 (alpha; alone: 1), randaugment=2:9 (operations an image, magnitude
  # up to 10; alone: these).
  config.data.augment = 'pad_crop,flip'
  # Of pad_crop: pad with this many black pixels on every side, crop at random to the old size.
  # 0: do not crop.
  config.data.pad = 4
  # Of flip: mirror left to right with probability 1/2. False: never, for data with a left and a
  # right.
  config.data.flip = True
  # Subtracted from the pixels in [0, 1]: one number a channel, or one for all.
  config.data.mean = (0.485, 0.456, 0.406)
  # Divides what is left: one number a channel, or one for all.
  config.data.std = (0.229, 0.224, 0.225)

  config.optimizer = ml_collections.ConfigDict()
  # sgd (PyTorch's), adamw or lion (optax's).
  config.optimizer.name = 'sgd'
  # Before warm-up and schedule. AdamW and Lion need far smaller ones than SGD.
  config.optimizer.learning_rate = 0.1
  # 0: learning_rate is used as it is. Else learning_rate is meant for this batch size, and is
  # scaled by batch_size / reference_batch_size.
  config.optimizer.reference_batch_size = 0
  # Learning rates of groups in place of learning_rate, which the others keep: output=0.01, or more
  # of them with commas between. The groups are those of `train`. Scale, warm-up and schedule are
  # the same for all.
  config.optimizer.rates = ''
  # Share of the last step's direction that the next one keeps; AdamW's and Lion's b1.
  config.optimizer.momentum = 0.9
  # sgd: L2, added to the gradient. adamw and lion: times the rate, taken off the parameter. It is
  # of every parameter that trains, gamma and beta included.
  config.optimizer.weight_decay = 1e-4
  # Whether norms' scales and biases decay too: groups gamma and beta.
  config.optimizer.decay_norms = True
  # How the rate falls: steps (at `drops`), cosine (to 0 at the end, from the end of the warm-up) or
  # constant.
  config.optimizer.schedule = 'steps'
  # With steps: fractions of the run after which the rate drops: after 80 and 120 of 160 epochs.
  config.optimizer.drops = (0.5, 0.75)
  # With steps: what a drop multiplies the rate by.
  config.optimizer.drop_factor = 0.1
  # Epochs of linear warm-up from 0, step by step.
  config.optimizer.warmup_epochs = 0.0
  # Variance of the Gaussian noise that is added to the gradients of what trains, before decay and
  # momentum; 0: none.
  config.optimizer.gradient_noise = 0.0
  # How fast it falls: after t steps the variance is gradient_noise / (1 + t)^gradient_noise_decay.
  config.optimizer.gradient_noise_decay = 0.55

  # Training steps in one call of an accelerator, which spares small networks the host's time
  # between steps. Where a line of metrics, an evaluation or a checkpoint is due between these
  # steps, each is a call of its own. A signal is heard after the call. The data must be resident.
  # On a CPU, where it does not pay, each step is always a call of its own.
  config.steps_per_call = 1
  # Steps between two lines of training metrics; each is the mean over the steps since the line
  # before.
  config.log_every = 50
  # Whether these lines also say which share of the ReLUs was silent on the batch just trained on.
  config.log_dead = False
  # Epochs between two evaluations; the last epoch ends with one.
  config.eval_every = 1
  # Epochs between two checkpoints; the last epoch ends with one.
  config.checkpoint_every = 1
  # Steps between two further checkpoints; 0: no further ones.
  config.checkpoint_every_steps = 0
  # Minutes between two further checkpoints, each written at the next line of metrics; 0: no further
  # ones.
  config.checkpoint_every_minutes = 0.0
  # How many of the newest checkpoints are kept.
  config.checkpoint_keep = 2
  # Besides, the checkpoint of every so many epochs is kept for good; 0: only the newest are kept.
  config.checkpoint_keep_every = 0
  return config.lock()


def imagenet_config() -> ml_collections.ConfigDict:
  """Returns the paper's ImageNet recipe (appendix of arXiv 2003.00152; defaults of open_lth)."""
  config = default_config()
  config.network = 'imagenet_resnet50'
  config.data.name = 'imagenet2012'
  config.data.test_split = 'validation'
  config.data.image_size = 224
  config.data.pad = 0
  config.epochs = 90
  config.batch_size = 1024
  config.batchnorm_images = 128
  config.optimizer.learning_rate = 0.4
  config.optimizer.warmup_epochs = 5.0
  config.optimizer.drops = (30 / 90, 60 / 90, 80 / 90)
  return config


def flat(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns a config's values by dotted name, as JSON holds them: 'data.pad', 'epochs', ..."""
  values = {}
  for key, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      values.update({f'{key}.{k}': v for k, v in flat(value).items()})
    else:
      values[key] = list(value) if isinstance(value, tuple) else value
  return values


def describe() -> str:
  """Returns every field as its flag and default, below the comment that explains it."""
  lines = [line.strip() for line in inspect.getsource(default_config).splitlines()]
  return '\n'.join('  ' + line if line.startswith('#') else f'  --{line.replace(" = ", "=", 1)}'
                   for line in lines
                   if line.startswith(('#', 'config.')) and not line.endswith('ConfigDict()'))


def require(config: ml_collections.ConfigDict, field: str, allowed: str, holds: bool) -> None:
  """Checks one field, given by its dotted name.

  Raises:
    UserError: it does not hold; the message gives the value and what is allowed.
  """
  if not holds:
    raise UserError(f'config.{field} is {flat(config)[field]!r}; allowed is {allowed}.'
                    f' Set --config.{field}=...')


def settings(config: ml_collections.ConfigDict, field: str) -> dict[str, tuple[float, ...]]:
  """Reads a field that lists names, each with numbers or without: 'a,b=2,c=2:9'.

  Returns:
    The numbers by name: {'a': (), 'b': (2.0,), 'c': (2.0, 9.0)}.

  Raises:
    UserError: it is written otherwise, or a name comes twice.
  """
  found = {}
  for term in filter(None, (term.strip() for term in flat(config)[field].split(','))):
    name, equals, numbers = (part.strip() for part in term.partition('='))
    require(config, field, f'each name once, and {name!r} comes twice', name not in found)
    try:
      found[name] = tuple(float(number) for number in numbers.split(':')) if equals else ()
    except ValueError:
      require(config, field, f'names with commas between and numbers after =, unlike {term!r}',
              False)
  return found
