"""Our networks in PyTorch, with open_lth's and torchvision's names and shapes: to compare with."""

import torch
from torch import nn
from torch.nn import functional as F


class Basic(nn.Module):
  expansion, down = 1, 'shortcut'

  def __init__(self, features_in, features, stride):
    super().__init__()
    self.conv1 = nn.Conv2d(features_in, features, 3, stride, 1, bias=False)
    self.bn1 = nn.BatchNorm2d(features)
    self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
    self.bn2 = nn.BatchNorm2d(features)
    add_shortcut(self, features_in, features, stride)

  def forward(self, x):
    y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
    return F.relu(y + getattr(self, self.down)(x))


class ImageNetBasic(Basic):
  down = 'downsample'


class Bottleneck(nn.Module):
  expansion, down = 4, 'downsample'

  def __init__(self, features_in, features, stride):
    super().__init__()
    self.conv1 = nn.Conv2d(features_in, features, 1, bias=False)
    self.bn1 = nn.BatchNorm2d(features)
    self.conv2 = nn.Conv2d(features, features, 3, stride, 1, bias=False)
    self.bn2 = nn.BatchNorm2d(features)
    self.conv3 = nn.Conv2d(features, 4 * features, 1, bias=False)
    self.bn3 = nn.BatchNorm2d(4 * features)
    add_shortcut(self, features_in, 4 * features, stride)

  def forward(self, x):
    y = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
    return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


def add_shortcut(block, features_in, features, stride):
  same = stride == 1 and features_in == features
  setattr(block, block.down, nn.Sequential(*([] if same else [
      nn.Conv2d(features_in, features, 1, stride, bias=False), nn.BatchNorm2d(features)])))


class CifarResNet(nn.Module):

  def __init__(self, depth, width=16, channels=3, classes=10):
    super().__init__()
    self.conv = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
    self.bn = nn.BatchNorm2d(width)
    blocks, features_in = [], width
    for stage in range(3):
      for i in range((depth - 2) // 6):
        blocks.append(Basic(features_in, width * 2 ** stage, 2 if stage and not i else 1))
        features_in = width * 2 ** stage
    self.blocks = nn.Sequential(*blocks)
    self.fc = nn.Linear(features_in, classes)

  def forward(self, x):
    return self.fc(self.blocks(F.relu(self.bn(self.conv(x)))).mean((2, 3)))


class ImageNetResNet(nn.Module):

  def __init__(self, stages, block, width=64, channels=3, classes=1000):
    super().__init__()
    block = {'basic': ImageNetBasic, 'bottleneck': Bottleneck}[block]
    self.conv1 = nn.Conv2d(channels, width, 7, 2, 3, bias=False)
    self.bn1 = nn.BatchNorm2d(width)
    self.maxpool = nn.MaxPool2d(3, 2, 1)
    features_in = width
    for stage, number in enumerate(stages):
      blocks = []
      for i in range(number):
        blocks.append(block(features_in, width * 2 ** stage, 2 if stage and not i else 1))
        features_in = block.expansion * width * 2 ** stage
      setattr(self, f'layer{stage + 1}', nn.Sequential(*blocks))
    self.fc = nn.Linear(features_in, classes)

  def forward(self, x):
    x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
    return self.fc(self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3)))


class ConvModule(nn.Module):

  def __init__(self, features_in, features):
    super().__init__()
    self.conv = nn.Conv2d(features_in, features, 3, padding=1)
    self.bn = nn.BatchNorm2d(features)

  def forward(self, x):
    return F.relu(self.bn(self.conv(x)))


class CifarVGG(nn.Module):

  def __init__(self, groups, channels=3, classes=10):
    super().__init__()
    layers, features_in = [], channels
    for i, number in enumerate(groups):
      layers += [nn.MaxPool2d(2, 2)] if i else []
      for _ in range(number):
        layers.append(ConvModule(features_in, min(64 * 2 ** i, 512)))
        features_in = min(64 * 2 ** i, 512)
    self.layers = nn.Sequential(*layers)
    self.fc = nn.Linear(512, classes)

  def forward(self, x):
    return self.fc(torch.flatten(nn.AvgPool2d(2)(self.layers(x)), 1))
