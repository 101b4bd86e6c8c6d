import numpy as np
import pytest
import torch
from scipy.stats import chisquare, ks_2samp
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from reidlib.data import augment as T
from reidlib.errors import ConfigError

PLAIN = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def pictures(count, height=48, width=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def smooth(count, height=48, width=32):
    """Pictures without steps, on which two roundings of one pixel position differ little."""
    small = pictures(count, 6, 4).float() / 255
    return torch.nn.functional.interpolate(small, (height, width), mode="bicubic").clamp(0, 1)


@pytest.mark.parametrize("white", [1, 255])
def test_normalising(white):
    (mean, std), images = T.IMAGENET, pictures(4)
    expected = (images.numpy() / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    got = T.normalise(images if white == 255 else images / 255, mean, std, white)
    assert got.dtype == torch.float32 and np.abs(got.numpy() - expected).max() < 1e-5


@pytest.mark.parametrize("recipe", T.RECIPES)
def test_a_seed_repeats_and_the_batch_is_left_alone(recipe):
    batch, before = pictures(16), pictures(16)
    augment = T.BatchAugment(recipe, (48, 32), *T.CLIP)
    first, second = (augment(batch, torch.Generator().manual_seed(3)) for _ in range(2))
    assert first.shape == batch.shape and first.dtype == torch.float32 and torch.equal(first, second)
    assert torch.equal(batch, before) and not torch.equal(first, augment(batch, torch.Generator().manual_seed(4)))
    torch.manual_seed(3)
    assert torch.equal(augment(batch), first)


def test_unknown_recipes_and_sizes_are_refused():
    with pytest.raises(ConfigError, match="irra"):
        T.BatchAugment("iraa", (48, 32), *T.CLIP)
    with pytest.raises(ConfigError, match="48, 32"):
        T.BatchAugment("irra", (48, 32), *T.CLIP)(pictures(2, 32, 48))


def test_padding_grows_with_the_height():
    assert [T.BatchAugment("irra", (height, 64), *PLAIN).padding for height in (384, 128, 48, 192)] == [10, 3, 2, 5]


def test_cfine_mirrors_half_and_normalises():
    mean, std = T.IMAGENET
    batch = pictures(4000, 4, 4)
    got = T.BatchAugment("cfine", (4, 4), mean, std)(batch, torch.Generator().manual_seed(0))
    straight = tv.normalize(batch / 255, mean, std)
    mirrored = (got - straight.flip(-1)).abs().amax((1, 2, 3)) < 1e-5
    assert ((got - straight).abs().amax((1, 2, 3)) < 1e-5)[~mirrored].all()
    assert 0.46 < mirrored.float().mean() < 0.54


def test_shift_is_mirror_then_pad_then_crop():
    batch = pictures(60)
    draw = T.Draw(60, 48, 32, torch.Generator().manual_seed(0))
    down, right = draw.offsets(5)
    mirrored = draw.chance(0.5)
    got = T.shift(batch, down, right, mirrored)
    for i, image in enumerate(batch):
        padded = tv.pad(tv.horizontal_flip(image) if mirrored[i] else image, 5)
        assert torch.equal(got[i], tv.crop(padded, int(down[i]) + 5, int(right[i]) + 5, 48, 32))


def test_offsets_are_uniform():
    down, right = T.Draw(11_000, 48, 32, torch.Generator().manual_seed(0)).offsets(5)
    for values in (down, right):
        counts = torch.bincount(values + 5)
        assert len(counts) == 11 and chisquare(counts).pvalue > 1e-3
    assert abs(np.corrcoef(down, right)[0, 1]) < 0.03


@pytest.mark.parametrize("size,scale", [((128, 64), (0.02, 0.4)), ((96, 96), (0.1, 0.2)), ((60, 12), (0.02, 0.4))])
def test_erased_boxes_are_distributed_as_torchvisions(size, scale):
    generator = torch.Generator().manual_seed(1)
    top, left, height, width = T.Draw(2500, *size, generator).boxes(scale, T.ERASE_ASPECT, p=0.5)
    torch.manual_seed(0)
    erasing, probe, theirs = v2.RandomErasing(p=1, scale=scale), torch.zeros(3, *size), []
    for _ in range(1250):
        box = erasing.make_params([probe])
        theirs.append((box["i"], box["j"], box["h"], box["w"]) if box["v"] is not None else (0, 0, 0, 0))
    theirs = torch.tensor(theirs)
    given = (theirs[:, 2] > 0).float().mean() / 2
    assert abs((height > 0).float().mean() - given) < 0.05
    theirs, ours = theirs[theirs[:, 2] > 0], torch.stack((top, left, height, width), 1)[height > 0]
    for column in range(4):
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3
    assert ks_2samp(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]).pvalue > 1e-3
    assert (ours[:, 0] + ours[:, 2] <= size[0]).all() and (ours[:, 1] + ours[:, 3] <= size[1]).all()


def test_erase_fills_the_box_and_nothing_else():
    batch = pictures(3) / 255
    value = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    box = [torch.tensor(values) for values in ((0, 4, 40), (0, 3, 30), (48, 10, 0), (32, 7, 0))]
    expected = torch.stack([tv.erase(image, *(int(b[i]) for b in box), value) for i, image in enumerate(batch)])
    assert torch.equal(T.erase(batch.clone(), *box, value), expected)


def test_irra_erases_half_with_the_mean_as_a_normalised_value():
    mean, std = T.CLIP
    batch = torch.full((2000, 3, 48, 24), 200, dtype=torch.uint8)
    got = T.BatchAugment("irra", (48, 24), mean, std)(batch, torch.Generator().manual_seed(0))
    fill, black, plain = (
        tv.normalize(torch.full((3, 1, 1), level), mean, std) if level is not None else torch.tensor(mean).view(3, 1, 1)
        for level in (None, 0.0, 200 / 255)
    )
    erased, frame, left = (((got - value).abs() < 1e-5).all(1) for value in (fill, black, plain))
    assert (erased | frame | left).all()
    given = erased.any((1, 2))
    assert 0.45 < given.float().mean() < 0.51  # a box too wide for the picture ten times over leaves it whole
    share = erased.float().mean((1, 2))[given]
    assert share.min() > 0.01 and share.max() < 0.42 and 0.12 < share.mean() < 0.22
    assert 0.05 < frame[~given].float().mean() < 0.09  # shifts of at most 2: 1.2 / 48 + 1.2 / 24 of the area is black


def test_rotate_is_torchvisions():
    batch = smooth(20)
    degrees = torch.linspace(-15, 15, 20)
    got = T.rotate(batch, degrees)
    for image, angle, ours in zip(batch, degrees, got, strict=True):
        theirs = tv.rotate(image, float(angle), InterpolationMode.NEAREST)
        assert ((ours - theirs).abs() > 0.02).float().mean() < 0.01


def test_crop_is_torchvisions_resized_crop():
    batch = pictures(40) / 255
    top, left, height, width = T.Draw(40, 48, 32, torch.Generator().manual_seed(0)).boxes(
        (0.85, 1), T.CROP_ASPECT, may_fill=True
    )
    got = T.crop(batch, top, left, height, width)
    assert (height == 0).any() and (height > 0).any()
    for i, image in enumerate(batch):
        box = [int(values[i]) for values in (top, left, height, width)]
        theirs = tv.resized_crop(image, *box, [48, 32], antialias=True) if height[i] else image
        assert torch.allclose(got[i], theirs, atol=1e-4)


@pytest.mark.parametrize("size", [(64, 64), (64, 32)])
def test_crops_are_distributed_as_torchvisions_on_squares_and_keep_people_whole(size):
    draw = T.Draw(1500, *size, torch.Generator().manual_seed(0))
    top, left, height, width = draw.boxes((0.9, 1), draw.relative(T.CROP_ASPECT), may_fill=True)
    torch.manual_seed(0)
    cropping, probe = v2.RandomResizedCrop((64, 64), scale=(0.9, 1)), torch.zeros(3, 64, 64)
    params = [cropping.make_params([probe]) for _ in range(1500)]
    theirs = np.array([[p["top"], p["left"], p["height"], p["width"]] for p in params])
    whole = height == 0
    height, width = torch.where(whole, size[0], height), torch.where(whole, size[1], width)
    ours = torch.stack((top, left, height, width * (64 // size[1])), 1).numpy()
    assert (ours[:, 2] >= 0.8 * 64).all()
    if size == (64, 64):
        assert all(ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3 for column in range(4))


def test_grey_and_jitter_are_torchvisions():
    batch = pictures(24) / 255
    assert torch.allclose(T.grey(batch), tv.rgb_to_grayscale(batch), atol=1e-5)
    draw = T.Draw(24, 48, 32, torch.Generator().manual_seed(0))
    factors, order = draw.uniform(0.5, 1.5, 3), draw.orders(3)
    assert len({tuple(row) for row in order.tolist()}) == 6
    steps = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation)
    for image, ours, factor, sequence in zip(batch, T.jitter(batch, factors, order), factors, order, strict=True):
        for number in sequence.tolist():
            image = steps[number](image, float(factor[number]))
        assert torch.allclose(ours, image, atol=1e-5)


def test_interactreid_draws_two_of_six_with_replacement(monkeypatch):
    def mark(number):
        return lambda images, draw: images * 10 + number

    monkeypatch.setattr(T, "SIX", tuple(mark(number) for number in range(1, 7)))
    got = T.two_of_six(torch.zeros(36_000, 3, 1, 1), torch.Generator().manual_seed(0))[:, 0, 0, 0].long()
    pairs, counts = got.unique(return_counts=True)
    assert len(pairs) == 36 and chisquare(counts).pvalue > 1e-3


def test_each_of_the_six_does_what_its_name_says():
    batch = pictures(300) / 255
    results = [operation(batch.clone(), T.Draw(300, 48, 32, None)) for operation in T.SIX]
    changed = [((result - batch).abs().amax((1, 2, 3)) > 1e-6).float().mean() for result in results]
    assert changed[0] == 1 and changed[1] > 0.8 and changed[2] > 0.8
    assert 0.04 < changed[3] < 0.18 and 0.4 < changed[4] < 0.6 and 0.4 < changed[5] < 0.6
    assert (results[5] == 0).any() and (results[0] - batch).abs().max() < 0.35
