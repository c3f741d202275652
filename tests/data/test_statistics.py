"""What is told of a set of images in few numbers."""

import torch

from mnist_lightning.data.statistics import spread


def test_a_sample_is_spread_over_all_images():
    images = torch.arange(1000)
    assert [part.tolist() for part in spread(images, most=20, size=10)] == [[*range(i, i + 10)] for i in (0, 500)]
    assert torch.equal(torch.cat([*spread(images, most=1000, size=300)]), images)
