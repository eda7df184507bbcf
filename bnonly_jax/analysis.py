r"""Looks into a trained network: gamma and beta, small gammas, ReLUs that never fire.

  python -m bnonly_jax.analysis --workdir=DIR [--step=N] [--replicate=I] [--data_dir=DIR]

The run may be finished, interrupted or going on. Writes DIR/analysis.json and DIR/analysis_*.png,
and nothing else there. The README says what is in analysis.json.

From Python, for example what a network does without its small gammas:

  run = analysis.load('runs/digits')
  params = run.variables['params']
  trained, zeroed = analysis.evaluate(run, params, analysis.zero_small(params, 0.01))
"""

import functools
import math
import os
import pathlib
from typing import Any
from typing import NamedTuple

from absl import flags
from etils import epath
import flax.traverse_util
import jax
import ml_collections
import numpy as np
import rich.progress

from bnonly_jax import command_line
from bnonly_jax import masks
from bnonly_jax import optimizer
from bnonly_jax import steps
from bnonly_jax import train
from bnonly_jax.config import UserError
from bnonly_jax.data import augment
from bnonly_jax.data import prepare
from bnonly_jax.models import layers
from bnonly_jax.run import checkpoint
from bnonly_jax.run import metrics
from bnonly_jax.run import plots
from bnonly_jax.run import processes
from bnonly_jax.run import workdir as workdir_lib

THRESHOLDS = (0.01, 0.05, 0.1)  # the paper's
SMALL = THRESHOLDS[0]  # below it, a gamma leaves its feature without the image
QUANTILES = (0, 5, 25, 50, 75, 95, 100)  # %
BINS = 40


class Loaded(NamedTuple):
  """A run's network as a checkpoint has it, on the host."""
  workdir: epath.Path
  config: ml_collections.ConfigDict
  planned: train.Plan  # the network, its data set, its mask
  step: int  # training steps done
  variables: dict[str, Any]  # 'params' (trained and frozen) and 'batch_stats', NumPy float32


def file_name(config: ml_collections.ConfigDict, replicate: int) -> str:
  """Returns what the analysis of a run, or of one of its replicates, is called."""
  which = f'_seed{config.seed + replicate}' if config.replicates > 1 else ''
  return f'analysis{which}.json'


def load(workdir: str | pathlib.Path, step: int | None = None, data_dir: str = '',
         replicate: int = 0) -> Loaded:
  """Rebuilds the network that a run has trained. Writes nothing into its folder.

    run = analysis.load('runs/digits')
    logits = run.planned.network.apply(run.variables, images)

  Args:
    workdir: of a run that is finished, interrupted or going on, on whatever devices.
    step: whose checkpoint; None is the newest whole one.
    data_dir: folder of the prepared data sets; '' is where they were in training.
    replicate: which one, from 0, of a run of several.

  Raises:
    UserError: the folder holds no run or not that checkpoint, what it holds is damaged, or the data
      set is not prepared here or is another.
  """
  workdir = workdir_lib.path(workdir)
  config, facts = workdir_lib.read_config(workdir)
  config.data.dir = data_dir or config.data.dir
  fitting = config.copy_and_resolve_references()
  fitting.batch_size = jax.device_count()  # of training, whose devices need not be those here
  planned = train.plan(fitting)
  if facts.get('data.version') != planned.info.version:
    raise UserError(f'--workdir={workdir} was trained on {config.data.name} of version'
                    f' {facts.get("data.version")}, and here is {planned.info.version}. Give the'
                    ' folder that holds the former: --data_dir=...')
  if not 0 <= replicate < config.replicates:
    raise UserError(f'--replicate={replicate}: --workdir={workdir} holds {config.replicates};'
                    f' allowed are 0 to {config.replicates - 1}. Choose one of them.')
  tx = optimizer.create(config.optimizer, lambda step: 0.0, planned.mask)
  like, frozen = jax.eval_shape(lambda variables: steps.create_state(variables, planned.mask, tx),
                                planned.shapes)
  if config.replicates > 1:
    like, frozen = (jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(
        (config.replicates, *leaf.shape), leaf.dtype), tree) for tree in (like, frozen))
    like = like._replace(step=jax.ShapeDtypeStruct((), like.step.dtype))
  state = _read_state(workdir, step, like)
  if jax.tree.leaves(frozen):
    frozen = checkpoint.read_frozen(workdir, frozen)
  trained = (state.trainable, frozen, state.batch_stats)
  if config.replicates > 1:
    trained = jax.tree.map(lambda leaf: leaf[replicate], trained)
  trainable, frozen, batch_stats = trained
  params = jax.device_get(masks.merge(trainable, frozen))
  return Loaded(workdir, config, planned, int(state.step),
                {'params': params, 'batch_stats': batch_stats})


def _read_state(workdir, step, like):
  kept = checkpoint.kept(workdir)
  if not kept:
    raise UserError(f'--workdir={workdir} holds no checkpoint yet; needed is one. Let the run go on'
                    ' to its first one (see its config.checkpoint_every).')
  if step is not None and step not in kept:
    raise UserError(f'--step={step}: --workdir={workdir} holds no checkpoint of that step; allowed'
                    f' are {", ".join(map(str, kept))}. Without --step it is the newest.')
  state, _, damaged = checkpoint.read(workdir, like, kept if step is None else [step])
  if state is None and step is None and checkpoint.kept(workdir) != kept:
    return _read_state(workdir, step, like)  # the run that goes on has put a new one in their place
  for number, reason in damaged:
    metrics.console.print(f'the checkpoint of step {number} is damaged ({reason})')
  if state is None:
    raise UserError(f'--workdir={workdir} holds no whole checkpoint of step'
                    f' {", ".join(map(str, kept))}. Start the run again: it puts them aside.'
                    if step is None else
                    f'--step={step}: that checkpoint is damaged; --workdir={workdir} holds'
                    f' {", ".join(map(str, kept))}. Choose another, or leave --step out.')
  return state


def gamma_table(params: dict[str, Any]) -> dict[str, Any] | None:
  """Describes the distribution of gamma, in all and by layer.

    gamma_table(run.variables['params'])['all']['below_0.01']  # share of abs(gamma) < 0.01

  Args:
    params: a network's, of any floating dtype.

  Returns:
    `all` and `layers`, a row for each norm in the network's order: `layer`, `count`, `mean`, `std`,
    `q0`, `q5`, ... `q100` (quantiles in %), `below_0.01`, `below_0.05`, `below_0.1` (share whose
    absolute value is smaller), `histogram` (counts). And `bins`, the edges of all histograms.
    None: the network has no gamma.
  """
  return _table(params, 'gamma')


def beta_table(params: dict[str, Any]) -> dict[str, Any] | None:
  """Describes the distribution of beta as `gamma_table` does that of gamma, without `below_...`.

    beta_table(run.variables['params'])['layers'][0]['mean']
  """
  return _table(params, 'beta')


def _named(params, group):
  """The tensors of a group of norm parameters by layer."""
  return layers.unstack({name.rpartition('/')[0]: np.asarray(value)
                         for name, value in masks.flatten(params).items()
                         if masks.group_of(name) == group})


def _table(params, group):
  named = _named(params, group)
  if not named:
    return None
  every = np.concatenate(list(named.values()))
  bins = np.histogram_bin_edges(every.astype(np.float64), BINS)

  def row(layer, values):
    values = values.astype(np.float64)
    quantiles = zip(QUANTILES, np.percentile(values, QUANTILES), strict=True)
    return {'layer': layer, 'count': values.size,
            'mean': float(values.mean()), 'std': float(values.std()),
            **{f'q{q}': float(value) for q, value in quantiles},
            **({f'below_{t}': float(np.mean(np.abs(values) < t)) for t in THRESHOLDS}
               if group == 'gamma' else {}),
            'histogram': np.histogram(values, bins)[0].tolist()}

  return {'all': row('all', every), 'layers': [row(*item) for item in named.items()],
          'bins': bins.tolist()}


def zero_small(params: dict[str, Any], threshold: float) -> dict[str, Any]:
  """Returns parameters with gamma 0 where abs(gamma) < threshold. Betas and all else stay.

    zero_small({'stem_norm': {'scale': np.array([-0.02, 0.5]), ...}}, 0.05)  # scale [0, 0.5]
  """
  return flax.traverse_util.unflatten_dict({
      name: np.where(np.abs(value) < threshold, np.zeros_like(value), value)
      if masks.group_of(name) == 'gamma' else value
      for name, value in masks.flatten(params).items()}, sep='/')


def evaluate(loaded: Loaded, *variants: dict[str, Any]) -> list[dict[str, Any]]:
  """Evaluates a run's network on its test set, with each of several sets of parameters.

    evaluate(run, run.variables['params'])[0]['test_accuracy']

  Args:
    loaded: the run; its BatchNorm statistics count.
    *variants: parameters in the place of its own. The test set is read once for all of them.

  Returns:
    For each `test_accuracy` in [0, 1], `test_loss` (None if it is not finite), `test_images`.

  Raises:
    UserError: a bad image, if config.data.bad_images is stop.
  """
  here = jax.local_device_count()
  # Tensors that variants have in common are on the devices once.
  placed = steps.place({id(leaf): leaf for leaf in jax.tree.leaves(variants)}, here)
  step, _ = _compiled(loaded)
  states = [_state(loaded, jax.tree.map(lambda leaf: placed[id(leaf)], params))
            for params in variants]
  test_set, batches = _test_batches(loaded, 'test accuracy')
  sums = [[step(*state, test_set, batch) for state in states] for batch in batches]
  results = []
  for per_batch in zip(*jax.device_get(sums), strict=True):
    loss, correct, count = (sum(float(s[key]) for s in per_batch)
                            for key in ('loss', 'correct', 'count'))
    results.append({'test_accuracy': correct / count,
                    'test_loss': loss / count if math.isfinite(loss) else None,
                    'test_images': round(count)})
  return results


def thresholded(loaded: Loaded, thresholds: tuple[float, ...] = THRESHOLDS) -> list[dict[str, Any]]:
  """Evaluates a network as trained, and with the gammas below each threshold set to zero.

    [row['test_accuracy'] for row in thresholded(run)]

  Returns:
    A row for threshold 0 (as trained) and each of `thresholds`: `threshold`, `gammas_zeroed` (how
    many) and what `evaluate` gives. Without gammas in the network, the first alone.

  Raises:
    UserError: as `evaluate`.
  """
  params = loaded.variables['params']
  gammas = plots.gammas(params)
  thresholds = (0.0, *(thresholds if gammas.size else ()))
  results = evaluate(loaded, params, *(zero_small(params, t) for t in thresholds[1:]))
  return [{'threshold': t, 'gammas_zeroed': int(np.sum(np.abs(gammas) < t)), **result}
          for t, result in zip(thresholds, results, strict=True)]


def silent_relus(loaded: Loaded) -> dict[str, np.ndarray]:
  """Finds the ReLUs that never fire on the test set.

  A ReLU is one output channel of one ReLU of the network. It never fires if its output is 0 at
  every position of every test image, in evaluation (BatchNorm's running statistics).

    sum(silent.sum() for silent in silent_relus(run).values())

  Returns:
    bool [channels] by the layer whose norm comes before, in the network's order; True: never fires.

  Raises:
    UserError: as `evaluate`.
  """
  _, step = _compiled(loaded)
  state = _state(loaded, steps.place(loaded.variables['params'], jax.local_device_count()))
  test_set, batches = _test_batches(loaded, 'ReLUs')
  told = jax.device_get([step(*state, test_set, batch) for batch in batches])
  fired = masks.flatten(jax.tree.map(lambda *some: np.any(some, 0), *told))
  return layers.unstack({name.removesuffix('/fired'): ~value for name, (value,) in fired.items()})


def relu_table(params: dict[str, Any], silent: dict[str, np.ndarray]) -> dict[str, Any]:
  """Counts the ReLUs that never fire and the effective features, in all and by layer.

  A feature, one ReLU's output, is effective if the ReLU ever fires and, where it follows a norm
  directly, abs(gamma) >= 0.01: with a smaller one the output is about relu(beta), whatever the
  image. At a block's end, where the residual is added in between, gamma does not count; nor does it
  in a network without norms.

    relu_table(run.variables['params'], silent_relus(run))['all']['silent_share']

  Args:
    params: the network's.
    silent: from `silent_relus`.

  Returns:
    `all` and `layers`, a row for each ReLU layer in the network's order: `layer`, `relus` (their
    number), `silent`, `silent_share`, `effective`, `effective_share`.
  """
  gammas = _named(params, 'gamma')
  effective = {}
  for layer, never in silent.items():
    judged = layer in gammas and not layers.adds_residual(layer, silent)
    effective[layer] = ~never & (np.abs(gammas[layer]) >= SMALL if judged else True)

  def row(layer, never, useful):
    return {'layer': layer, 'relus': never.size,
            'silent': int(never.sum()), 'silent_share': float(never.mean()),
            'effective': int(useful.sum()), 'effective_share': float(useful.mean())}

  return {'all': row('all', *(np.concatenate(list(by_layer.values()))
                              for by_layer in (silent, effective))),
          'layers': [row(layer, never, effective[layer]) for layer, never in silent.items()]}


def analyse(workdir: str | pathlib.Path, step: int | None = None, data_dir: str = '',
            replicate: int = 0) -> dict[str, Any]:
  """Computes all of this for a run, writes it and its plots into the run's folder, and prints it.

    analyse('runs/digits')['gamma']['all']['below_0.01']

  Args:
    workdir: as for `load`.
    step: as for `load`.
    data_dir: as for `load`.
    replicate: as for `load`.

  Returns:
    What analysis.json holds; see the README.

  Raises:
    UserError: as `load` and `evaluate`, or the folder cannot be written.
  """
  loaded = load(workdir, step, data_dir, replicate)
  workdir, config, params = loaded.workdir, loaded.config, loaded.variables['params']
  if not workdir_lib.is_remote(workdir) and not os.access(workdir, os.W_OK):
    raise UserError(f'--workdir={workdir} cannot be written; allowed is a folder of yours. Copy it,'
                    ' and give the copy as --workdir.')
  steps_per_epoch = loaded.planned.info.train_images // config.batch_size
  metrics.console.print(f'{workdir}: {config.network}, training {config.train}, step {loaded.step}'
                        f' of {config.epochs * steps_per_epoch}; split'
                        f' {loaded.planned.info.test_split} of {config.data.name},'
                        f' {loaded.planned.info.test_images:,} images')
  analysis = {
      'network': config.network, 'norm': config.norm, 'train': config.train,
      'data': config.data.name, 'seed': config.seed + replicate,
      'step': loaded.step, 'epoch': loaded.step / steps_per_epoch,
      'gamma': gamma_table(params),
      'beta': beta_table(params),
      'thresholds': thresholded(loaded),
      'relus': relu_table(params, silent_relus(loaded)),
  }
  _print(analysis)
  title = f'{config.network}, {config.data.name}, training {config.train}, step {loaded.step}'

  def write():
    written = [workdir / file_name(config, replicate)]
    workdir_lib.write_json(written[0], analysis)
    for draw in (plots.gamma_beta_by_layer, plots.small_gammas, plots.relus):
      if analysis['gamma'] or draw is plots.relus:
        written.append(workdir / f'{written[0].stem}_{draw.__name__}.png')
        draw(analysis, written[-1], title)
    return [str(path) for path in written]

  try:
    written = processes.on_main(write)
  except OSError as error:
    raise UserError(f'--workdir={workdir} cannot be written ({error.strerror or error}). Make room,'
                    ' or copy it and give the copy as --workdir.') from error
  metrics.console.print('  '.join(written))
  return analysis


def _print(analysis):
  say = metrics.console.print
  trained, *zeroed = analysis['thresholds']
  say(f'test accuracy {trained["test_accuracy"]:.4f} as trained')
  if not analysis['gamma']:
    say('norm none: this network has no gamma and no beta')
  for row in zeroed:
    share = row['gammas_zeroed'] / analysis['gamma']['all']['count']
    say(f'              {row["test_accuracy"]:.4f} with the {share:.1%} of gammas at zero whose'
        f' absolute value is below {row["threshold"]:g}')
  relus = analysis['relus']['all']
  say(f'{relus["silent"]:,} of {relus["relus"]:,} ReLUs ({relus["silent_share"]:.1%}) never fire;'
      f' {relus["effective"]:,} features are effective')


def _compiled(loaded):
  config = loaded.config
  return _steps(loaded.planned.network, config.data.mean, config.data.std, config.compute_dtype)


@functools.cache  # who asks again, as a notebook does, need not wait for the compiler again
def _steps(network, mean, std, compute_dtype):
  normalise = augment.normaliser(mean, std, compute_dtype)
  return steps.eval_step(network, normalise), steps.firing_step(network, normalise)


def _state(loaded, params):
  """The state and the frozen half as evaluation takes them, nothing being frozen."""
  stats = steps.place(loaded.variables['batch_stats'], jax.local_device_count())
  return steps.State(None, params, stats, ()), jax.tree.map(lambda _: None, params)


def _test_batches(loaded, doing):
  """Returns the test set, if resident, and its batches, on the devices; shows how far they are."""
  config, info, here = loaded.config, loaded.planned.info, jax.local_device_count()
  if config.data.name == 'digits':
    prepare.prepare('digits', config.data.dir)
  # A feed has at least one training image; more need not be read.
  feed = train.open_feed(config, info._replace(train_images=1))
  size = -(-config.eval_batch_size // jax.device_count()) * jax.device_count()
  batches = rich.progress.track(
      steps.feed(feed.eval_batches(size), here), doing, -(-info.test_images // size),
      console=metrics.console, transient=True, disable=not metrics.console.is_terminal)
  return steps.place(feed.test_set, here), batches


if __name__ == '__main__':
  _WORKDIR = flags.DEFINE_string(
      'workdir', None, 'Folder of a run, finished or not; analysis.json and the plots go there.')
  _STEP = flags.DEFINE_integer('step', None, 'Whose checkpoint to take; default: the newest.')
  _DATA_DIR = flags.DEFINE_string(
      'data_dir', '', 'Folder of the prepared data sets; default: where they were in training.')
  _REPLICATE = flags.DEFINE_integer('replicate', 0, 'Which one of a run of several, from 0.')
  command_line.run(
      lambda: analyse(_WORKDIR.value, _STEP.value, _DATA_DIR.value, _REPLICATE.value),
      lambda: '' if _WORKDIR.value else '--workdir=DIR, the folder of a run, is needed, or --help.')
