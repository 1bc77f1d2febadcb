"""What people write: a PIL image and a stack of transforms per access, float32, NCHW, SGD."""

from __future__ import annotations

from PIL import Image
from torch import nn, optim
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchvision import transforms

from zoo.layers import ByteDropout, FastELU


class PilImages(Dataset):
    """What everybody writes: arrays, a PIL image and a stack of transforms on every access."""

    def __init__(self, images, labels):
        self.images = images.permute(0, 2, 3, 1).numpy()
        self.labels = labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
            ]
        )

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.transform(Image.fromarray(self.images[i])), self.labels[i]


def plain_layers(model):
    """The same network from torch's own layers, in the usual order."""
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, FastELU):
                setattr(parent, name, nn.ELU(inplace=True))
            elif isinstance(child, ByteDropout):
                setattr(parent, name, nn.Dropout(child.dropped / 256))
    for block in model.modules():
        for i in range(len(block) - 1 if isinstance(block, nn.Sequential) else 0):
            if isinstance(block[i], nn.MaxPool2d) and isinstance(block[i + 1], nn.ELU):
                block[i], block[i + 1] = block[i + 1], block[i]
    return model


def plain_training(model, loader, epochs=1, device="cpu"):
    """float32, NCHW, SGD with a constant rate."""
    optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    model.train().to(device)
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(images.to(device)), labels.to(device)).backward()
            optimizer.step()
