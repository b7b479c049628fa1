"""Pictures from a server that speaks TensorFlow Serving's protocol, and what can go wrong."""

import dataclasses
import json
import re
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import ExifTags, Image
from tensorflow_serving.apis import prediction_log_pb2
from tf_serving import TfServing

from components.serving_pusher import canary
from serving import generate, png
from serving.client import Generator
from serving.errors import MissingSignatureError, ServingError
from serving.pictures import Original
from serving.releases import IMAGE_ENCODER
from serving.request import SAMPLERS, cut_note
from storage import picture_marks
from trainer.diffusion.sampler import initial_noise

REQUESTS = [
    {
        "prompts": [prompt],
        "negative_prompts": negative,
        "seed": seed,
        "num_steps": steps,
        "sampler": sampler,
    }
    for prompt, negative, seed, steps, sampler in (
        ("a blue dragon", "", 0, 2, None),
        ("a red bird &amp; its nest", "", 2**64 - 1, 3, "euler_a"),
        ("角のある青い生き物 🐉", "horns", 3, 1, "ddim"),
        ("a cave", "a dragon", 2**31, 2, "dpmpp_2m"),
        ("a blue dragon", "", 1, 5, None),
        ("a blue dragon", "", 1, 5, "euler_a"),
        ("a blue dragon", "", 1, 5, "dpmpp_2m"),
        ("a blue dragon", "wings", 1, 5, None),
    )
]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def server(released: Path) -> Iterator[TfServing]:
    # It makes batches, but not of a release that is not made for that.
    with TfServing(released / "models.config", batch_threads=2) as server:
        yield server


@pytest.fixture(scope="module")
def in_process(released: Path) -> Generator:
    return Generator(str(released))


@pytest.fixture(scope="module")
def expected(in_process: Generator) -> list[np.ndarray]:
    return [in_process.generate(**request) for request in REQUESTS]


@pytest.fixture(scope="module")
def pictures(
    expected: list[np.ndarray],
    publish: Callable[..., int],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[int, list[np.ndarray]]:
    """What each request gives with each of the two models."""
    root = tmp_path_factory.mktemp("other") / "serving_model"
    publish(root, 2)
    generator = Generator(str(root))
    return {1: expected, 2: [generator.generate(**request) for request in REQUESTS]}


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_a_server_gives_the_pictures_that_the_folder_gives(
    server: TfServing, expected: list[np.ndarray], protocol: str
) -> None:
    generator = Generator(getattr(server, protocol))
    assert generator.version == 1
    for request, pictures in zip(REQUESTS, expected, strict=True):
        # A server does not tell a release's defaults.
        actual = generator.generate(**request, guidance_scale=3.0)
        assert actual.dtype == np.uint8
        np.testing.assert_array_equal(actual, pictures)
    assert len({pictures.tobytes() for pictures in expected}) == len(REQUESTS)


def test_the_command_line_talks_to_a_server(
    server: TfServing, released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = []
    for place in (
        ["--serving-dir", str(released)],
        ["--server", server.rest],
        ["--server", server.grpc],
    ):
        files.append(tmp_path / f"{len(files)}.png")
        request = ["a dragon", "a bird", "--count", "2", "--steps", "2", "--guidance-scale", "4"]
        request += ["--sampler", "euler_a", "--width", "96"]
        arguments = [*request, *place, "--out", str(files[-1])]
        code = generate.main(arguments)
        printed = capsys.readouterr()
        assert (code, printed.err) == (0, "")
        assert printed.out.splitlines()[-1] == (
            f"{files[-1]}: 192 x 128 pixels, release 1 of {place[1]}"
        )
    found = [picture_marks.read(file.read_bytes()) for file in files]
    assert all(one.is_as_marked and one.agrees for one in found)
    folder, *servers = (one.pictures for one in found)
    assert {marks.training_id for marks in folder} == {"training 1"}
    # A server tells which release it is and which training made it, but no digests.
    told = [dataclasses.replace(m, networks={}, preset=None) for m in folder]
    assert [list(pictures) for pictures in servers] == [told, told]
    assert len({png.decode(file.read_bytes()).tobytes() for file in files}) == 1
    assert files[1].read_bytes() == files[2].read_bytes()


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_a_server_of_a_former_version_draws_with_what_it_knows(
    server: TfServing, expected: list[np.ndarray], protocol: str
) -> None:
    address = getattr(server, protocol)
    generator = Generator(address)
    with server.of_former_version("cut", "sample", "sample_from_noise"):
        pictures = generator.generate(**REQUESTS[0], guidance_scale=3.0)
        np.testing.assert_array_equal(pictures, expected[0])
        with pytest.raises(ServingError) as error:
            generator.generate(**REQUESTS[3])
    assert str(error.value) == (
        f"release 1 of {address} is too old for the sampler dpmpp_2m; it draws only with ddim: "
        "choose that, or use a newer release"
    )


@pytest.mark.parametrize("sampler", ["ddim", "euler_a"])
def test_any_size_is_the_same_picture_wherever_it_is_drawn(
    server: TfServing, in_process: Generator, sampler: str
) -> None:
    request = {"prompts": ["a blue dragon"], "num_steps": 2, "guidance_scale": 3.0, "seed": 2**40}
    request["sampler"] = sampler
    own = in_process.generate(**request)
    [picture] = in_process.generate(**request, height=40, width=96)
    assert picture.shape == (40, 96, 3)
    models = in_process._models
    contexts = models.call(
        "text_encoder",
        "text",
        {
            name: np.array([text], object)
            for name, text in (("prompt", b"a blue dragon"), ("negative_prompt", b""))
        },
        ("context", "unconditional_context"),
        1,
    )
    noise = initial_noise(tf.constant([0, 2**8]), tf.constant(1), (5, 12, 4)).numpy()
    drawn = models.call(
        "diffusion_model",
        "sample_from_noise",
        {
            **contexts,
            "num_steps": np.array(2, np.int32),
            "guidance_scale": np.array(3.0, np.float32),
            "noise": noise,
            "seed": np.array([0, 2**8], np.int32),
            "sampler": np.array(sampler.encode(), object),
        },
        ("latent",),
        1,
    )
    np.testing.assert_array_equal(models.decode(drawn["latent"], 1)[0], picture)
    for address in (server.rest, server.grpc):
        generator = Generator(address)
        np.testing.assert_array_equal(
            generator.generate(**request, height=40, width=96)[0], picture
        )
        # The side that is not named is the release's, which a server does not tell otherwise.
        assert generator.generate(**request, width=96).shape == (1, 64, 96, 3)
        np.testing.assert_array_equal(generator.generate(**request, height=64), own)


@pytest.mark.parametrize("place", ["folder", "rest", "grpc"])
def test_sizes_that_cannot_be_drawn_are_refused_before_anything_is_computed(
    server: TfServing,
    released: Path,
    in_process: Generator,
    place: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address = str(released) if place == "folder" else getattr(server, place)
    generator = in_process if place == "folder" else Generator(address)
    called, call = [], generator._models.call

    def recorded(network: str, signature: str, *others: Any) -> dict[str, np.ndarray]:
        called.append(signature)
        return call(network, signature, *others)

    monkeypatch.setattr(generator._models, "call", recorded)
    with pytest.raises(ServingError) as error:
        generator.generate(["a dragon"], height=44)
    assert str(error.value) == "the height is 44; it must be a multiple of 8, for example 48"
    # For 2560 positions, scores and weights of 2 heads, twice, are 0.2 GB alone.
    monkeypatch.setattr(generator, "_memory_limit_bytes", 10**8)
    with pytest.raises(ServingError) as error:
        generator.generate(["a dragon"], height=512, width=320)
    said = re.fullmatch(
        r"a picture of 320 x 512 pixels needs up to 0\.([0-9]) GB of memory besides the models, "
        r"but only 0\.1 GB are available: choose a smaller size, or raise --memory-limit if there "
        r"is more memory",
        str(error.value),
    )
    assert said is not None
    assert int(said[1]) >= 2
    monkeypatch.setattr(generator, "_memory_limit_bytes", None)
    monkeypatch.setattr("serving.in_process.free_memory_bytes", lambda: 3 * 10**9)
    with pytest.raises(ServingError, match=f"only {'3' if place == 'folder' else '8'}.0 GB are"):
        generator.generate(["a dragon"], height=4096, width=4096)
    assert set(called) == {"size"}


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_a_server_of_a_former_version_draws_its_own_size(
    server: TfServing, in_process: Generator, protocol: str
) -> None:
    address = getattr(server, protocol)
    generator = Generator(address)
    request = {"prompts": ["a cave"], "num_steps": 1, "guidance_scale": 3.0, "sampler": "euler_a"}
    with server.of_former_version("size", "sample_at_size"):
        # What a folder's file says need not be asked of its models.
        own = in_process.generate(**request, height=64, width=64)
        np.testing.assert_array_equal(generator.generate(**request), own)
        with pytest.raises(ServingError) as error:
            generator.generate(**request, height=64)
    assert str(error.value) == (
        f"release 1 of {address} is too old for a height and width; it draws only the size that it "
        "was trained at: leave them out, or use a newer release"
    )


FROM_PICTURE: dict[str, Any] = {
    "prompts": ["a blue dragon"],
    "num_steps": 4,
    "guidance_scale": 3.0,
}


def noisy(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


def test_what_a_release_refuses_itself_is_one_line(
    in_process: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.request.SAMPLERS", (*SAMPLERS, "heun"))
    message = f"sampler must be one of {', '.join(SAMPLERS)}, and is heun$"
    with pytest.raises(ServingError, match=message):
        in_process.generate(["a dragon"], num_steps=1, sampler="heun")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_picture_is_the_same_wherever_it_is_drawn_from_another(
    server: TfServing, in_process: Generator, sampler: str
) -> None:
    image = noisy(50, 70)
    mask = np.zeros((50, 70), bool)
    mask[10:20, 30:60] = True
    from_text = in_process.generate(**FROM_PICTURE, sampler=sampler, height=40, width=96)
    request = {**FROM_PICTURE, "sampler": sampler, "image": image, "height": 40, "width": 96}
    drawn = in_process.generate(**request, strength=0.5)
    inpainted = in_process.generate(**request, strength=0.5, mask=mask)
    for address in (server.rest, server.grpc):
        generator = Generator(address)
        np.testing.assert_array_equal(generator.generate(**request, strength=0.5), drawn)
        again = generator.generate(**request, strength=0.5, mask=mask)
        np.testing.assert_array_equal(again, inpainted)
        # The size of the training, which a server tells when it is asked.
        assert generator.generate(**FROM_PICTURE, image=image).shape == (1, 64, 64, 3)
    np.testing.assert_array_equal(in_process.generate(**request, strength=1.0), from_text)
    assert not np.array_equal(drawn, from_text)

    fitted = Original(image, 1.0, mask).fitted(40, 96)
    assert fitted.mask is not None
    kept = inpainted[0][~fitted.mask]
    np.testing.assert_array_equal(kept, fitted.pixels[~fitted.mask])
    assert (inpainted[0] != fitted.pixels)[fitted.mask].mean() > 0.9


def test_masks_of_nothing_of_everything_and_of_a_pixel(in_process: Generator) -> None:
    image = noisy(64, 64)
    mask = np.zeros((64, 64), bool)
    request = {**FROM_PICTURE, "image": image}
    np.testing.assert_array_equal(in_process.generate(**request, mask=mask)[0], image)
    # Without a strength, a whole picture is 0.8 of it, and what is masked is drawn from text alone.
    everything = in_process.generate(**request, mask=~mask)
    np.testing.assert_array_equal(everything, in_process.generate(**FROM_PICTURE))
    np.testing.assert_array_equal(
        in_process.generate(**request), in_process.generate(**request, strength=0.8)
    )
    mask[17, 40] = True
    changed = (in_process.generate(**request, mask=mask)[0] != image).any(axis=-1)
    assert np.argwhere(changed).tolist() == [[17, 40]]


def test_no_strength_gives_what_the_autoencoder_keeps(in_process: Generator) -> None:
    image = noisy(64, 64)
    latent = in_process._models.encode(image[None], 1)
    assert np.abs(latent).max() > 0.01
    for strength in (0.0, 0.2):
        drawn = in_process.generate(**FROM_PICTURE, image=image, strength=strength)
        np.testing.assert_array_equal(drawn, in_process._models.decode(latent, 1))


def test_the_command_line_reads_pictures_as_a_dataset_is_read(
    server: TfServing,
    in_process: Generator,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    upright = noisy(40, 24)
    turned = Image.fromarray(upright).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    picture, mask = tmp_path / "picture.webp", tmp_path / "mask.gif"
    turned.save(picture, exif=exif, lossless=True)
    area = np.zeros((40, 24), np.uint8)
    area[:20] = 255
    Image.fromarray(area).convert("1").save(mask)
    request = ["a cave", "--image", str(picture), "--mask", str(mask), "--strength", "0.6"]
    request += ["--steps", "3", "--guidance-scale", "3", "--height", "40", "--width", "24"]
    [expected] = in_process.generate(
        ["a cave"],
        num_steps=3,
        image=upright,
        mask=area > 0,
        strength=0.6,
        height=40,
        width=24,
    )
    np.testing.assert_array_equal(expected[20:], upright[20:])
    out = tmp_path / "out.png"
    assert generate.main([*request, "--server", server.rest, "--out", str(out)]) == 0
    assert capsys.readouterr().err == ""
    np.testing.assert_array_equal(png.decode(out.read_bytes()), expected)


NO_ENCODER = (
    "has no image encoder, so it draws only from text: leave the picture out, or use a release "
    "that was pushed with serving.image_to_image"
)


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_a_server_without_an_image_encoder_draws_from_text_and_says_so(
    server: TfServing, expected: list[np.ndarray], protocol: str
) -> None:
    address = getattr(server, protocol)
    generator = Generator(address)
    with server.without(IMAGE_ENCODER):
        with pytest.raises(ServingError) as error:
            generator.generate(["a cave"], image=noisy(8, 8))
        assert str(error.value) == f"{address} {NO_ENCODER}"
        pictures = generator.generate(**REQUESTS[0], guidance_scale=3.0)
        np.testing.assert_array_equal(pictures, expected[0])


def test_a_folder_without_an_image_encoder_says_so_before_it_is_loaded(
    released: Path,
    in_process: Generator,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, picture = tmp_path / "from_text", tmp_path / "picture.png"
    shutil.copytree(released, root, ignore=shutil.ignore_patterns(IMAGE_ENCODER))
    release = root / "releases" / "1.json"
    facts = json.loads(release.read_bytes())
    facts["files"] = {k: v for k, v in facts["files"].items() if not k.startswith(IMAGE_ENCODER)}
    release.write_text(json.dumps(facts))
    picture.write_bytes(png.encode(noisy(8, 8)))
    request = ["a cave", "--image", str(picture), "--out", str(tmp_path / "x.png")]
    assert generate.main([*request, "--serving-dir", str(root)]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", f"error: release 1 of {root} {NO_ENCODER}\n")
    monkeypatch.delitem(in_process._models._models, IMAGE_ENCODER)
    with pytest.raises(ServingError, match=f"^release 1 of {released} {NO_ENCODER}$"):
        in_process.generate(["a cave"], image=noisy(8, 8))


def test_the_canary_draws_from_a_picture_too(in_process: Generator) -> None:
    models = in_process._models._models
    contexts = models["text_encoder"].signatures["text"](
        prompt=tf.constant(["a cave"]), negative_prompt=tf.constant([""])
    )
    request = {
        **contexts,
        "num_steps": tf.constant(2),
        "guidance_scale": tf.constant(7.5),
        "seed": tf.constant([0, 0]),
    }
    images = tf.constant(noisy(64, 64)[None])
    assert canary._problem_with_picture(models, request, images) is None
    for broken, said in (
        (models["decoder"], "drawing from a picture fails: "),
        (NotANumber(), "the picture's latent has values that are not finite numbers"),
    ):
        found = canary._problem_with_picture({**models, IMAGE_ENCODER: broken}, request, images)
        assert found is not None
        assert found.startswith(said)


class NotANumber:
    """An image encoder that has overflowed."""

    def __init__(self) -> None:
        nothing = tf.fill([1, 8, 8, 4], float("nan"))
        self.signatures = {"serving_default": lambda images: {"latent": nothing}}


def test_servers_are_warmed_up_with_a_picture_of_the_training(released: Path) -> None:
    folder = released / "diffusion_model" / "1" / "assets.extra"
    shapes = {}
    for record in tf.data.TFRecordDataset(str(folder / "tf_serving_warmup_requests")):
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        request = log.predict_log.request
        for name, value in request.inputs.items():
            shapes[request.model_spec.signature_name, name] = tf.make_ndarray(value).shape
    assert shapes["sample_from_noise", "noise"] == (1, 8, 8, 4)
    assert shapes["predict_epsilon", "latent"] == (1, 8, 8, 4)
    assert shapes["sample_at_size", "context"] == (1, 77, 8)
    assert shapes["inpaint", "latent"] == (1, 8, 8, 4)
    assert shapes["inpaint", "mask"] == (1, 64, 64)
    assert shapes["sample_at_size", "height"] == shapes["size", "width"] == ()


LONG = "a dragon with " + "very " * 71 + "long horns and SHARP claws"
CUT = "horns and sharp claws"


@pytest.mark.parametrize("place", ["folder", "rest", "grpc"])
def test_what_is_cut_off_a_prompt_is_named_wherever_it_is_drawn(
    server: TfServing,
    in_process: Generator,
    place: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[tuple[str, str | None]] = []
    generator = in_process if place == "folder" else Generator(getattr(server, place))

    def tell(prompt: str, cut: str | None) -> None:
        told.append((prompt, cut))

    # The second one is exactly as long as may be.
    fits = "a dragon with " + "very " * 71 + "horns"
    prompts = [LONG, fits, LONG]
    generator.generate(prompts, ["", "no " * 80, ""], num_steps=1, on_cut=tell)
    assert told == [(LONG, CUT), ("no " * 80, "no no no no no")]
    generator.generate([LONG], num_steps=1)
    [message] = [record.getMessage() for record in caplog.records]
    assert message == (
        f"{LONG!r} is longer than the 77 tokens that the text encoder reads; this part is cut off "
        f"and has no effect: {CUT!r}."
    )
    if place == "rest":
        out = str(tmp_path / "x.png")
        assert generate.main([LONG, "--steps", "1", "--server", server.rest, "--out", out]) == 0
        printed = capsys.readouterr()
        assert printed.err == f"note: {message.removesuffix('.')}\n"
        assert printed.out.splitlines()[0] == f"Asking {server.rest} ..."


def test_a_release_that_is_too_old_to_tell_says_so(
    in_process: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = in_process._models.call

    def without_cut(network: str, signature: str, *others: Any) -> dict[str, np.ndarray]:
        return call(network, "no_cut" if signature == "cut" else signature, *others)

    monkeypatch.setattr(in_process._models, "call", without_cut)
    told: list[str] = []
    in_process.generate(
        [LONG], num_steps=1, on_cut=lambda prompt, cut: told.append(cut_note(prompt, cut))
    )
    [note] = told
    assert note.startswith(f"{LONG!r} may be longer than the 77 tokens that the text encoder reads")
    assert note.endswith("this release is too old to say which words are cut")


def test_rest_needs_no_tensorflow(server: TfServing, tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from serving.generate import main\n"
        "code = main(sys.argv[1:])\n"
        "assert not {'tensorflow', 'keras', 'grpc'} & set(sys.modules)\n"
        "sys.exit(code)\n"
    )
    out = tmp_path / "x.png"
    arguments = ["a dragon", "--out", out, "--server", server.rest, "--steps", "2"]
    subprocess.run([sys.executable, "-c", script, *arguments], cwd=ROOT, check=True, timeout=100)
    from serving import png

    picture = Generator(server.grpc).generate(["a dragon"], num_steps=2)[0]
    np.testing.assert_array_equal(png.decode(out.read_bytes()), picture)


def test_many_clients_get_their_own_pictures_while_a_new_version_is_pushed(
    publish: Callable[..., int],
    pictures: dict[int, list[np.ndarray]],
    serving_root: Path,
) -> None:
    with TfServing(serving_root / "models.config") as server:
        results: list[tuple[str, int, np.ndarray]] = []
        pushed = threading.Event()

        def client(start: int) -> None:
            address = (server.rest, server.grpc)[start % 2]
            generator = Generator(address)
            done = 0
            # Some before, some while, and some after the new version comes.
            while done < 6 or not pushed.is_set():
                number = (start + done) % len(REQUESTS)
                picture = generator.generate(**REQUESTS[number], guidance_scale=3.0)
                results.append((address, number, picture))
                done += 1
                if done >= 6:
                    # The server is a thread here, which has yet to load the new version: clients
                    # with a short pause would leave it little time to.
                    time.sleep(2.0)

        with ThreadPoolExecutor(8) as pool:
            clients = [pool.submit(client, start) for start in range(8)]
            try:
                assert publish(serving_root, 2) == 2
                assert server.serves(2)
            finally:
                pushed.set()
            for done in clients:
                done.result()
        for address in (server.rest, server.grpc):
            after = Generator(address)
            last = [after.generate(**request, guidance_scale=3.0) for request in REQUESTS]
            np.testing.assert_array_equal(last, pictures[2])
    versions = {
        (address, version): 0 for address in (server.rest, server.grpc) for version in (1, 2)
    }
    for address, number, picture in results:
        is_old, is_new = ((p[number] == picture).all() for p in pictures.values())
        assert is_old != is_new
        versions[address, 2 if is_new else 1] += 1
    for address in (server.rest, server.grpc):
        assert versions[address, 1] > 0
        assert versions[address, 1] + versions[address, 2] >= 24


@pytest.mark.slow
def test_memory_is_bounded(released: Path) -> None:
    def load(server: TfServing, count: int) -> int:
        with ThreadPoolExecutor(8) as pool:
            generator = Generator(server.grpc)
            list(pool.map(lambda n: generator.generate(**REQUESTS[n % 6]), range(count)))
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    with TfServing(released / "models.config") as server:
        before = load(server, 100)
        after = load(server, 2000)
    assert after - before < 100 * 1024


def test_a_full_server_refuses_clearly_and_is_asked_again(server: TfServing) -> None:
    with server.full_with(1):
        for address in (server.rest, server.grpc):
            patient = Generator(address, retries=100)
            with ThreadPoolExecutor(4) as pool:
                drawn = [pool.submit(patient.generate, **REQUESTS[n]) for n in range(4)]
                assert all(done.exception() is None for done in drawn)
            hasty = Generator(address, retries=0)
            refused = 0
            with ThreadPoolExecutor(6) as pool:
                for done in [pool.submit(hasty.generate, **REQUESTS[n]) for n in range(6)]:
                    error = done.exception()
                    if error is not None:
                        refused += 1
                        assert isinstance(error, ServingError)
                        expected = f"{address} cannot answer now: Too many requests (after 1 try)"
                        assert str(error) == expected
            assert refused > 0
        assert server.most_at_once == 1


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_what_a_server_does_not_have(server: TfServing, protocol: str) -> None:
    address = getattr(server, protocol)
    with pytest.raises(ServingError) as error:
        Generator(address, version=7).generate(["a dragon"])
    assert str(error.value) == (
        f"{address} has no version 7 of all three models (text_encoder: 1; diffusion_model: 1; "
        "decoder: 1)"
    )
    models = Generator(address)._models
    inputs = {"latent": np.zeros([1, 3, 3, 5], np.float32)}
    with pytest.raises(ServingError, match="refuses the request to decoder: "):
        models.call("decoder", "serving_default", inputs, ("generated_images",), 1)
    with pytest.raises(MissingSignatureError, match='"nonesuch" not found'):
        models.call("decoder", "nonesuch", inputs, ("generated_images",), 1)
    with pytest.raises(ServingError, match="has no model nonesuch; start it with"):
        models._available("nonesuch", 5.0)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_nobody_answers(scheme: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address = f"{scheme}://127.0.0.1:{free_port()}"
    arguments = ["a dragon", "--out", str(tmp_path / "x.png"), "--server", address]
    assert generate.main([*arguments, "--retries", "1"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert address in error
    assert "(after 2 tries)" in error
    assert error.count("\n") == 1


def test_an_address_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["a dragon", "--out", str(tmp_path / "x.png"), "--server"]
    assert generate.main([*arguments, "localhost:8501"]) == 2
    assert capsys.readouterr().err == (
        "error: --server is localhost:8501; it must be http://HOST:PORT or grpc://HOST:PORT\n"
    )
    assert generate.main([*arguments, "http://127.0.0.1:1", "--timeout", "0"]) == 2
    assert "the timeout is 0.0 s; it must be more than 0" in capsys.readouterr().err


class Answers(HTTPServer):
    """Answers with what it was told, one after another, and the last one for ever."""

    def __init__(self, *answers: tuple[int, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.answers = list(answers)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Answer(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        answers = self.server.answers
        status, body = answers.pop(0) if len(answers) > 1 else answers[0]
        if status == 0:
            time.sleep(1.0)
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((200, b"<html>hello</html>"), "is not TensorFlow Serving's REST interface (status 200)"),
        ((403, b"no"), "is not TensorFlow Serving's REST interface (status 403)"),
        ((503, b"down"), "cannot answer now: status 503 (after 2 tries)"),
        ((500, b'{"error": "broken"}'), "refuses the request to text_encoder: broken"),
        ((404, b'{"error": "nothing"}'), "has no model text_encoder; start it with"),
        ((0, b""), "took longer than 0.3 s; ask for fewer steps or allow more time"),
    ],
)
def test_wrong_answers(answer: tuple[int, bytes], message: str) -> None:
    seconds = 0.3 if answer[0] == 0 else 20
    with Answers(answer) as server:
        generator = Generator(server.url, retries=1, timeout_seconds=seconds)
        with pytest.raises(ServingError) as error:
            generator.generate(["a dragon"])
    assert message in str(error.value)


def test_a_busy_moment_passes() -> None:
    ready = b'{"model_version_status": [{"version": "4", "state": "AVAILABLE"}]}'
    loading = b'{"model_version_status": [{"version": "4", "state": "LOADING"}]}'
    with Answers((503, b"starting"), (200, loading), (200, ready)) as server:
        assert Generator(server.url).version == 4


@pytest.fixture(scope="module")
def batching_server(
    publish: Callable[..., int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TfServing]:
    root = tmp_path_factory.mktemp("batches") / "serving_model"
    publish(root, 1, batch_size=4)
    with TfServing(root / "models.config", batch_threads=2) as server:
        yield server


def assert_alike(actual: np.ndarray, expected: np.ndarray) -> None:
    """But for how kernels round at another size of batch."""
    assert actual.shape == expected.shape
    difference = np.abs(actual.astype(int) - expected)
    assert difference.max() <= 2
    assert difference.mean() < 0.05


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_requests_of_any_kind_are_drawn_together(
    batching_server: TfServing, in_process: Generator, protocol: str
) -> None:
    image = noisy(50, 70)
    mask = np.zeros((50, 70), bool)
    mask[10:20, 30:60] = True
    requests = [{**request, "guidance_scale": 3.0} for request in REQUESTS]
    requests += [
        {**requests[1], "height": 40, "width": 96},
        {**requests[3], "width": 96},
        {**FROM_PICTURE, "image": image, "strength": 0.5, "sampler": "euler_a"},
        {**FROM_PICTURE, "image": image, "mask": mask, "height": 40, "width": 96},
        {**FROM_PICTURE, "image": image, "mask": mask, "strength": 0.7, "seed": 9},
        {**FROM_PICTURE, "prompts": ["one", "two", "three"], "seed": [5, 2**63, 6], "together": 9},
    ]
    generator = Generator(getattr(batching_server, protocol))
    with ThreadPoolExecutor(len(requests)) as threads:
        drawn = list(threads.map(lambda request: generator.generate(**request), requests))
    for request, pictures in zip(requests, drawn, strict=True):
        assert_alike(pictures, in_process.generate(**{**request, "together": 1}))
    # Outside of a mask not one pixel changes.
    fitted = Original(image, 1.0, mask).fitted(40, 96)
    np.testing.assert_array_equal(drawn[-3][0][~fitted.mask], fitted.pixels[~fitted.mask])
    assert max(batching_server.batch_sizes) == 4


def test_a_request_that_is_impossible_leaves_the_others_in_its_batch_alone(
    batching_server: TfServing, expected: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = Generator(batching_server.grpc)
    generator.generate(**REQUESTS[0], guidance_scale=3.0)
    monkeypatch.setattr("serving.client.check_request", lambda **_: None)
    sizes = batching_server.batch_sizes
    del sizes[:]

    def draw(steps: int) -> np.ndarray | str:
        try:
            return generator.generate(["a blue dragon"], num_steps=steps, guidance_scale=3.0)
        except ServingError as error:
            return str(error)

    with ThreadPoolExecutor(4) as threads:
        drawn = list(threads.map(draw, (2, 0, 1001, 2)))
    for place, steps in ((1, 0), (2, 1001)):
        assert drawn[place] == (
            f"{batching_server.grpc} refuses the request to diffusion_model: num_steps must be 1 "
            f"to 1000, and is {steps}"
        )
    for place in (0, 3):
        assert_alike(drawn[place], expected[0])
    assert max(sizes) > 1


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_a_former_client_is_told_why_a_server_that_draws_together_refuses_it(
    batching_server: TfServing, protocol: str
) -> None:
    models = Generator(getattr(batching_server, protocol))._models
    texts = {"prompt": np.array([b"a cave"], object), "negative_prompt": np.array([b""], object)}
    contexts = models.call("text_encoder", "text", texts, ("context", "unconditional_context"), 1)
    request = {
        **contexts,
        "num_steps": np.array(2, np.int32),
        "guidance_scale": np.array(3.0, np.float32),
        "seed": np.array([0, 0], np.int32),
    }
    with pytest.raises(ServingError, match="Batching Run\\(\\) input tensors must have"):
        models.call("diffusion_model", "serving_default", request, ("latent",), 1)


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_a_release_that_is_not_for_batches_is_served_as_ever_by_a_server_that_makes_them(
    server: TfServing, expected: list[np.ndarray], protocol: str
) -> None:
    generator = Generator(getattr(server, protocol))
    # Of a release that has no signatures for it, too.
    with server.of_former_version():
        both = generator.generate(
            ["a blue dragon", "a cave"], num_steps=2, guidance_scale=3.0, together=2
        )
    np.testing.assert_array_equal(both[:1], expected[0])
    assert server.batch_sizes == []


@pytest.mark.parametrize("place", ["folder", "rest", "grpc"])
def test_pictures_of_a_request_are_drawn_together_where_that_is_asked(
    server: TfServing, in_process: Generator, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = in_process if place == "folder" else Generator(getattr(server, place))
    request: dict[str, Any] = {
        "prompts": ["a cave", "a dragon", "a bird", "a tree", "a cave"],
        "negative_prompts": ["", "wings", "", "", ""],
        "seed": [1, 1, 2**63, 4, 5],
        "num_steps": 3,
        "guidance_scale": 3.0,
        "sampler": "euler_a",
    }
    alone = generator.generate(**request)
    told: list[int] = []
    rows, call = [], generator._models.call

    def recorded(network: str, signature: str, inputs: Any, *others: Any) -> Any:
        if signature == "rows" and network == "diffusion_model":
            rows.append(len(inputs["seed"]))
        return call(network, signature, inputs, *others)

    monkeypatch.setattr(generator._models, "call", recorded)
    drawn = generator.generate(
        **request, together=3, on_picture=lambda index, _: told.append(index)
    )
    assert_alike(drawn, alone)
    assert (told, rows) == ([0, 1, 2, 3, 4], [3, 2])
    if place == "folder":
        # As many as there is memory for.
        found = call("diffusion_model", "size", SIZE_OF_TRAINING, ("peak_memory",), 1)
        peak = float(found["peak_memory"][0])
        monkeypatch.setattr(generator, "_memory_limit_bytes", int(2.5 * peak))
        del rows[:]
        assert_alike(generator.generate(**request, together=5), alone)
        assert rows == [2, 2, 1]
    with pytest.raises(ServingError, match=r"^the number of pictures to draw together is 0; it"):
        generator.generate(["a cave"], together=0)


SIZE_OF_TRAINING = {side: np.array(0, np.int32) for side in ("height", "width")}
