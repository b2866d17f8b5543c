"""The hash of copies and of other images, its flips and turns, and the exact search for close ones."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy import fft

from plip_jax.data import perceptual_hash
from plip_jax.data.perceptual_hash import close_pairs, close_pairs_within, dhash, distances, hash_image
from tests.small_tissue import encoded, tissue

# Of 64 bits; what the leakage audit takes by default.
RADIUS = 6


def own(image: Image.Image) -> np.uint64:
    return hash_image(image).bits[0]


def again(image: Image.Image, quality: int) -> Image.Image:
    return Image.open(io.BytesIO(encoded(image, "JPEG", quality=quality)))


COPIES = {
    "compressed": lambda image: again(image, 75),
    "compressed hard": lambda image: again(image, 40),
    "reduced": lambda image: image.resize((60, 60), Image.Resampling.BICUBIC),
    "enlarged and compressed": lambda image: again(image.resize((224, 224), Image.Resampling.BICUBIC), 85),
    "cropped": lambda image: image.crop((1, 1, 127, 127)),
    "brighter": lambda image: image.point(lambda level: int(level * 1.05)),
    "grey": lambda image: image.convert("L"),
}


@pytest.mark.parametrize("kind", COPIES)
def test_copies_stay_within_the_radius(kind):
    found = [int(distances(own(tissue(seed)), own(COPIES[kind](tissue(seed))))) for seed in range(30)]
    assert max(found) <= RADIUS


def test_other_images_differ_in_about_half_of_the_bits():
    bits = np.array([own(tissue(seed)) for seed in range(100)])
    found = distances(bits[:, None], bits[None, :])[np.triu_indices(100, 1)]
    assert found.min() > 2 * RADIUS
    assert found.mean() == pytest.approx(32, abs=1)  # independent signs


def test_the_hash_is_of_the_cosine_transforms_low_frequencies():
    grey = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    coefficients = fft.dctn(grey.astype(np.float64), type=2)[1:9, 1:9]
    bits = (coefficients > np.median(coefficients)).reshape(-1)
    assert int(own(Image.fromarray(grey))) == int("".join("1" if bit else "0" for bit in bits), 2)


def test_half_of_the_bits_are_set():
    assert [int(np.bitwise_count(own(tissue(seed)))) for seed in range(5)] == [32] * 5


@pytest.mark.parametrize("turn", list(Image.Transpose))
def test_a_flipped_or_turned_image_has_one_of_the_eight_hashes(turn):
    image = tissue(3, side=96).resize((120, 96))
    hashes = hash_image(image)
    found = distances(own(image.transpose(turn)), hashes.bits)
    assert found.min() <= 2  # rounding of Pillow's box filter moves a coefficient across the median
    assert len(set(hashes.bits.tolist())) == 8
    assert distances(own(image.transpose(turn)), hashes.bits[0]) > RADIUS


def test_blank_images_are_known_as_such():
    assert hash_image(Image.new("RGB", (64, 64), (240, 238, 242))).is_flat
    noise = np.random.default_rng(0).normal(235, 2, (224, 224, 3)).astype(np.uint8)
    assert hash_image(Image.fromarray(noise)).is_flat
    assert not hash_image(tissue(0)).is_flat


def planted(rng: np.random.Generator, count: int) -> np.ndarray:
    """Random hashes, some of them others with up to 14 bits changed."""
    hashes = rng.integers(0, 2**64, count, dtype=np.uint64)
    for row in range(0, count, 3):
        bits = rng.choice(64, rng.integers(0, 15), replace=False)
        hashes[row] = hashes[rng.integers(count)] ^ np.bitwise_or.reduce(
            np.uint64(1) << bits.astype(np.uint64), initial=0
        )
    return hashes


@pytest.mark.parametrize("radius", [0, 3, 4, 6, 11, 12, 20])
def test_the_search_finds_every_close_pair(radius):
    rng = np.random.default_rng(radius)
    left = planted(rng, 400)
    right = np.concatenate([planted(rng, 200), left[:50] ^ np.uint64(0b1011), left[50:80]])
    found = close_pairs(left, right, radius)
    all_distances = distances(left[:, None], right[None, :])
    rows, columns = np.nonzero(all_distances <= radius)
    assert len(rows) >= 30
    np.testing.assert_array_equal(found.left, rows)
    np.testing.assert_array_equal(found.right, columns)
    np.testing.assert_array_equal(found.distance, all_distances[rows, columns])


def test_of_several_variants_the_nearest_counts_once():
    left = np.array([0b111, 2**40 + 2**50 + 2**60], np.uint64)
    right = np.array([[0b110, 0b111], [0b1, 0b10], [2**40, 2**41]], np.uint64)
    found = close_pairs(left, right, 2)
    assert list(zip(found.left.tolist(), found.right.tolist(), found.distance.tolist(), strict=True)) == [
        (0, 0, 0), (0, 1, 2), (1, 2, 2),
    ]  # fmt: skip


def test_nothing_is_close_to_nothing():
    empty = np.empty(0, np.uint64)
    for left, right in ((empty, np.array([1], np.uint64)), (np.array([1], np.uint64), empty), (empty, empty)):
        for radius in (2, 30):
            assert len(close_pairs(left, right, radius).left) == 0


def test_a_search_that_cannot_be_meant_is_refused():
    with pytest.raises(ValueError, match="0 to 64 bits, got 65"):
        close_pairs(np.zeros(1, np.uint64), np.zeros(1, np.uint64), 65)
    with pytest.raises(ValueError, match="hashes of uint64, got int64"):
        close_pairs(np.zeros(1, np.int64), np.zeros(1, np.uint64), 1)


def test_turned_copies_are_close_to_their_image_and_to_no_other():
    images = [tissue(0), tissue(1), tissue(0).transpose(Image.Transpose.ROTATE_90), again(tissue(1), 60)]
    hashes = np.array([hash_image(image).bits for image in images])
    pairs = close_pairs(np.ascontiguousarray(hashes[:, 0]), hashes, RADIUS)
    expected = {(0, 0), (0, 2), (1, 1), (1, 3), (2, 0), (2, 2), (3, 1), (3, 3)}
    assert set(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)) == expected


@pytest.mark.realdata
def test_real_tiles_are_told_apart_and_their_copies_found(realdata):
    files = sorted((realdata / "pathology_atlas" / "tiles").rglob("*.jpg"))[::4]
    images = [image for file in files if not hash_image(image := Image.open(file)).is_flat]
    hashes = np.array([hash_image(image).bits for image in images])
    pairs = close_pairs(np.ascontiguousarray(hashes[:, 0]), hashes, RADIUS)
    assert pairs.left.tolist() == pairs.right.tolist() == list(range(len(images)))  # each close to itself alone
    assert len(images) > 200
    copies = [own(again(image.resize((224, 224), Image.Resampling.BICUBIC), 75)) for image in images[::5]]
    assert (distances(np.array(copies), hashes[::5, 0]) <= RADIUS).all()


@pytest.mark.parametrize("agreeing", [0, 1, 2, 3, None])
@pytest.mark.parametrize("radius", [0, 1, 3, 6, 13])
def test_the_search_within_one_set_finds_every_close_pair(radius, agreeing, monkeypatch):
    if agreeing is not None:
        monkeypatch.setattr(perceptual_hash, "_cheapest_agreeing", lambda count, radius: agreeing)
    hashes = planted(np.random.default_rng(radius), 500)
    hashes[400:410] = hashes[:10]
    hashes[410:420] = hashes[:10] ^ np.uint64(0b1011)
    found = close_pairs_within(hashes, radius)
    all_distances = np.triu(distances(hashes[:, None], hashes[None, :]) + 1, 1)  # 0: no pair
    rows, columns = np.nonzero((all_distances > 0) & (all_distances <= radius + 1))
    assert len(rows) >= 10
    np.testing.assert_array_equal(found.left, rows)
    np.testing.assert_array_equal(found.right, columns)
    np.testing.assert_array_equal(found.distance, all_distances[rows, columns] - 1)


@pytest.mark.parametrize("radius", [0, 3, 12, 63, 64])
def test_few_hashes_have_few_pairs_at_any_radius(radius):
    hashes = np.array([0, 2**64 - 1, 0b111, 2**64 - 2], np.uint64)
    pairs = close_pairs_within(hashes, radius)
    expected = [
        (one, other)
        for one in range(4)
        for other in range(one + 1, 4)
        if (int(hashes[one]) ^ int(hashes[other])).bit_count() <= radius
    ]
    assert list(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)) == expected
    assert len(close_pairs_within(hashes[:1], radius).left) == len(close_pairs_within(hashes[:0], radius).left) == 0


def test_a_search_within_that_cannot_be_meant_is_refused():
    with pytest.raises(ValueError, match="0 to 64 bits, got -1"):
        close_pairs_within(np.zeros(1, np.uint64), -1)
    with pytest.raises(ValueError, match="hashes of uint64, got float64"):
        close_pairs_within(np.zeros(1), 1)


def test_dhash_has_a_bit_where_a_pixel_is_brighter_than_its_left_neighbour():
    rows = np.tile(np.array([0, 9, 5, 7, 7, 1, 2, 3, 4], np.uint8), (8, 1))
    rows[7] = range(9)
    assert dhash(Image.fromarray(rows)) == int("10100111" * 7 + "11111111", 2)


def test_dhash_is_imagehashs():
    imagehash = pytest.importorskip("imagehash", reason="it comes with the extra for tests")
    for seed in range(10):
        assert f"{dhash(tissue(seed)):016x}" == str(imagehash.dhash(tissue(seed)))
