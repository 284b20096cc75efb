import pytest
import torch
from refusals import says

from compresskd.data import Normalize


def test_features_of_vectors_have_their_own_scale():
    vectors = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    out = Normalize((1.0, 2.0), (2.0, 4.0))(vectors)
    torch.testing.assert_close(out, torch.tensor([[0.0, 0.0], [1.0, 0.5]]))


def test_an_image_gives_the_same_bits_in_any_batch():
    normalize = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 255)
    pixels = torch.randint(0, 256, (37, 3, 7, 5), dtype=torch.uint8)
    whole = normalize(pixels)
    assert all(torch.equal(normalize(pixels[i : i + 1])[0], whole[i]) for i in range(37))


@pytest.mark.parametrize(
    ("mean", "std", "words"),
    [
        ((0.5,), (0.1, 0.1), "data.mean has 1 values and data.std 2"),
        ((0.5,), (0.0,), says("std", "[0.0]", "finite")),
    ],
)
def test_impossible_values_are_refused(mean, std, words):
    with pytest.raises(ValueError, match=words):
        Normalize(mean, std)


def test_values_that_do_not_fit_the_channels_are_refused():
    with pytest.raises(ValueError, match=r"mean: got \[0\.5, 0\.5\], expected"):
        Normalize((0.5, 0.5), (1.0, 1.0)).check((3, 8, 8))
