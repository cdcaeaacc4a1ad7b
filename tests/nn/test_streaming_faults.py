"""Each known fault of the published streaming engines, held right; and what a module must do."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from tests.nn.streaming_oracle import TOLERANCE, errors, gradients, relative_error, settle
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from slidelens.errors import StreamingError
from slidelens.nn.streaming import StreamingTrunk


def picture(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def small(**more: object) -> nn.Module:
    return settle(
        nn.Sequential(
            nn.Conv2d(3, 6, 7, stride=2, padding=3, **more), nn.BatchNorm2d(6), nn.ReLU(True),
            nn.MaxPool2d(3, 2, 1), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(),
        )
    )  # fmt: skip


def exact(module: nn.Module, size: tuple[int, ...], tile: object, scheme: str = "seam") -> None:
    image = picture(*size).requires_grad_()
    trunk = StreamingTrunk(module, tile, scheme=scheme)
    found = errors(gradients(trunk, module, image), gradients(module, module, image))
    assert max(found.values()) <= TOLERANCE, found


schemes = pytest.mark.parametrize(("scheme", "tile"), [("seam", (32, 40)), ("halo", (64, 72))])


@schemes
def test_trainable_affine_of_frozen_norm_gets_its_gradient(scheme: str, tile: object) -> None:
    module = small()
    assert module[1].weight.requires_grad
    exact(module, (1, 3, 96, 104), tile, scheme)


@schemes
@pytest.mark.parametrize("size", [(97, 103), (96, 101), (99, 98)])
def test_image_that_the_stride_does_not_divide(
    scheme: str, tile: object, size: tuple[int, int]
) -> None:
    exact(small(), (1, 3, *size), tile, scheme)


def test_tile_smaller_than_the_halo_is_refused_with_the_smallest_that_works() -> None:
    trunk = StreamingTrunk(small(), 20, scheme="halo")
    with pytest.raises(StreamingError, match=r"smallest tile that works is (\d+) x \1 px") as e:
        trunk(picture(1, 3, 96, 96))
    smallest = int(str(e.value).split("works is ")[1].split(" x")[0])
    exact(small(), (1, 3, 96, 96), smallest, "halo")
    with pytest.raises(StreamingError, match="smallest tile"):
        StreamingTrunk(small(), smallest - 1, scheme="halo").plan(96, 96)


@pytest.mark.parametrize("tile", [1, 3, 4, 7])
def test_seams_take_tiles_smaller_than_the_receptive_field(tile: int) -> None:
    exact(small(), (1, 3, 21, 26), tile)


@schemes
def test_gradient_of_the_image_has_no_stripes_at_seams(scheme: str, tile: object) -> None:
    module, image = small(), picture(1, 3, 96, 104).requires_grad_()
    trunk = StreamingTrunk(module, tile, scheme=scheme)
    found, expected = gradients(trunk, module, image), gradients(module, module, image)
    error = (found.image - expected.image).abs().amax((0, 1))
    assert float(error.max()) <= TOLERANCE * float(expected.image.abs().max())


@schemes
def test_batch_of_several_gives_the_right_bias_gradient(scheme: str, tile: object) -> None:
    module = small()
    assert module[0].bias is not None
    exact(module, (3, 3, 96, 104), tile, scheme)


@schemes
def test_dilation_and_kernels_that_are_not_square(scheme: str, tile: object) -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 4, (3, 5), stride=(1, 2), padding=(4, 2), dilation=(4, 1)), nn.ReLU(),
        nn.Conv2d(4, 6, (1, 7), padding=(0, 3), groups=2), nn.ReLU(),
        nn.AvgPool2d((3, 2), stride=(2, 1), padding=(1, 0)),
    )  # fmt: skip
    exact(settle(module), (2, 3, 81, 90), tile, scheme)


@schemes
@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_padding_mode_is_kept(scheme: str, tile: object, mode: str) -> None:
    exact(small(padding_mode=mode), (1, 3, 96, 101), tile, scheme)


def test_circular_padding_is_kept() -> None:
    exact(small(padding_mode="circular"), (1, 3, 48, 53), 16)


@pytest.mark.parametrize("enabled", [True, False])
def test_grad_mode_does_not_leak(enabled: bool) -> None:
    trunk = StreamingTrunk(small(), 32)
    with torch.set_grad_enabled(enabled):
        y = trunk(picture(1, 3, 64, 64))
        assert torch.is_grad_enabled() is enabled
        assert y.requires_grad is enabled
        if enabled:
            y.sum().backward()
        assert torch.is_grad_enabled() is enabled


def test_needs_no_cuda_and_no_compiled_extension() -> None:
    module = small()
    assert StreamingTrunk(module, 32)(picture(1, 3, 64, 64)).device.type == "cpu"


# A module like any other ---------------------------------------------------------------------


def test_hooks_of_parameters_run_once_on_the_whole_gradient() -> None:
    module, image = small(), picture(1, 3, 64, 72)
    seen: list[Tensor] = []
    module[0].weight.register_hook(seen.append)
    StreamingTrunk(module, 32)(image).sum().backward()
    assert len(seen) == 1
    assert torch.equal(seen[0], module[0].weight.grad)


@pytest.mark.parametrize("path", ["", "0", "4"])
def test_hooks_of_layers_which_would_not_run_are_refused(path: str) -> None:
    module = small()
    hook = module.get_submodule(path).register_forward_hook(lambda _m, _i, output: 2 * output)
    with pytest.raises(StreamingError, match=rf"layer '{path}' \(.*has a hook"):
        StreamingTrunk(module, 32)
    hook.remove()
    trunk, image = StreamingTrunk(module, 32), picture(1, 3, 64, 72)
    seen: list[Tensor] = []
    trunk.register_forward_hook(lambda _m, _i, output: seen.append(output))
    trunk(image)
    assert len(seen) == 1
    prune.l1_unstructured(module[4], "weight", 0.5)  # masks the weight in a hook, before each call
    with pytest.raises(StreamingError, match=r"layer '4', Conv2d\(.* with a hook: "):
        trunk(image)
    prune.remove(module[4], "weight")
    with torch.no_grad():
        assert relative_error(trunk(image), module(image)) <= TOLERANCE


def test_weights_parametrized_later_are_noticed() -> None:
    module, image = small(), picture(1, 3, 64, 72)
    trunk = StreamingTrunk(module, 32)
    parametrizations.weight_norm(module[0])
    with pytest.raises(StreamingError, match=r"layer '0', Conv2d\(.* is now .*Parametrized"):
        trunk(image)
    exact(module, (1, 3, 64, 72), 32)


@pytest.mark.parametrize(
    ("at", "other"),
    [
        (3, nn.AvgPool2d(2)),
        (4, nn.Conv2d(6, 8, 3, padding=2, dilation=2)),
        (2, nn.GELU()),
        (1, nn.Identity()),
        (6, nn.Sigmoid()),
    ],
)
def test_layers_that_were_changed_for_others_are_noticed(at: int, other: nn.Module) -> None:
    module, image = small(), picture(1, 3, 64, 72)
    trunk = StreamingTrunk(module, 32)
    trunk(image)
    module.add_module(str(at), settle(other))
    with pytest.raises(StreamingError, match=rf"is now layer '{at}', {type(other).__name__}"):
        trunk(image)
    exact(module, (1, 3, 64, 72), 32)


def test_gradients_accumulate_over_images() -> None:
    module = small()
    trunk = StreamingTrunk(module, 32)
    images = [picture(1, 3, 64, 72, seed=s) for s in (0, 1)]
    for image in images:
        trunk(image).sum().backward()
    found = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    sum(module(image).sum() for image in images).backward()
    for a, p in zip(found, module.parameters(), strict=True):
        assert relative_error(a, p.grad) <= TOLERANCE


def test_autograd_grad_of_one_input_leaves_parameters_alone() -> None:
    module, image = small(), picture(1, 3, 64, 72).requires_grad_()
    (grad,) = torch.autograd.grad(StreamingTrunk(module, 32)(image).square().sum(), image)
    (expected,) = torch.autograd.grad(module(image).square().sum(), image)
    assert relative_error(grad, expected) <= TOLERANCE
    assert all(p.grad is None for p in module.parameters())


def test_backward_twice_with_retained_graph() -> None:
    module, image = small(), picture(1, 3, 64, 72)
    y = StreamingTrunk(module, 32)(image).sum()
    y.backward(retain_graph=True)
    once = module[0].weight.grad.clone()
    y.backward()
    assert relative_error(module[0].weight.grad, 2 * once) <= TOLERANCE


def test_functional_call_and_parametrized_weights() -> None:
    module, image = small(), picture(1, 3, 64, 72)
    nn.utils.parametrizations.weight_norm(module[4])
    trunk = StreamingTrunk(module, 32)
    other = {n: (p * 1.5).detach() for n, p in trunk.named_parameters()}
    found = torch.func.functional_call(trunk, other, (image,))
    plain = {n.removeprefix("module."): p for n, p in other.items()}
    assert relative_error(found, torch.func.functional_call(module, plain, (image,))) <= TOLERANCE
    exact(module, (1, 3, 64, 72), 32)


def test_frozen_layers_get_no_gradient_and_the_rest_the_right_one() -> None:
    module = small()
    for p in (*module[0].parameters(), *module[1].parameters()):
        p.requires_grad_(False)
    image = picture(1, 3, 96, 104)
    found = gradients(StreamingTrunk(module, 32), module, image)
    expected = gradients(module, module, image)
    assert set(found.parameters) == {"4.weight", "4.bias"}
    assert max(errors(found, expected).values()) <= TOLERANCE


def test_weights_changed_between_forward_and_backward_are_an_error() -> None:
    module = small()
    y = StreamingTrunk(module, 32)(picture(1, 3, 64, 72)).sum()
    with torch.no_grad():
        module[0].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_optimiser_steps_equal_those_of_the_module() -> None:
    plain, streamed = small(), small()
    trunk = StreamingTrunk(streamed, 32)
    steps = [torch.optim.SGD(m.parameters(), 1e-3, momentum=0.9) for m in (plain, trunk)]
    for seed in range(3):
        image = picture(1, 3, 64, 72, seed=seed)
        for net, step in zip((plain, trunk), steps, strict=True):
            step.zero_grad()
            net(image).amax((2, 3)).sum().backward()
            step.step()
    for p, q in zip(plain.parameters(), streamed.parameters(), strict=True):
        assert relative_error(q, p) <= TOLERANCE


def test_copies_and_state_dicts() -> None:
    trunk, image = StreamingTrunk(small(), 32), picture(1, 3, 64, 72)
    twin = copy.deepcopy(trunk)
    assert torch.equal(twin(image), trunk(image))
    buffer = io.BytesIO()
    torch.save(trunk.state_dict(), buffer)
    buffer.seek(0)
    twin.load_state_dict(torch.load(buffer, weights_only=True))


def test_training_mode_does_not_reach_the_frozen_trunk() -> None:
    trunk, image = StreamingTrunk(small(), 32), picture(1, 3, 64, 72)
    before = trunk(image)
    mean = trunk.module[1].running_mean.clone()
    assert torch.equal(trunk.train()(image), before)
    assert torch.equal(trunk.module[1].running_mean, mean)
    trunk.module.train()
    with pytest.raises(StreamingError, match=r"in eval mode when .* is now .* in train mode"):
        trunk(image)


def test_channels_last_is_preserved() -> None:
    module = small().to(memory_format=torch.channels_last)
    image = picture(1, 3, 96, 104).contiguous(memory_format=torch.channels_last)
    y = StreamingTrunk(module, 32)(image)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(y, module(image)) <= TOLERANCE


def test_operations_in_place_are_ordered_as_written() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)
            self.next = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            a = self.conv(x)
            b = F.relu(a, inplace=True)
            c = self.next(a)  # reads what the ReLU wrote
            c += a
            c.mul_(0.5)
            return c - b

    exact(settle(InPlace()), (1, 3, 40, 44), 16)


def test_in_place_on_a_view_that_others_read_is_refused() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            a = self.conv(x)
            a[:, :2].relu_()
            return a * 2

    with pytest.raises(StreamingError, match="changed in place"):
        StreamingTrunk(settle(Half()), 16)


def test_input_is_not_written_to() -> None:
    module = settle(nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 2, 3)))
    image = picture(1, 3, 40, 40)
    before = image.clone()
    StreamingTrunk(module, 16)(image)
    assert torch.equal(image, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_error_in_half_precision_is_that_of_the_module(dtype: torch.dtype) -> None:
    module, image = small(), picture(1, 3, 128, 136)
    exact_values = gradients(module, module, image)
    module = module.float()

    def half(net: nn.Module) -> dict[str, float]:
        def call(x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype):
                return net(x)

        found = gradients(call, module, image.float())
        assert found.output.dtype == dtype
        return errors(found, exact_values)

    streamed, whole = half(StreamingTrunk(module, 32)), half(module)
    assert max(streamed.values()) <= 2 * max(whole.values())


# Images and background -------------------------------------------------------------------------


class Lazy:
    """An image read piece by piece, which counts what was read at once."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels, self.largest = pixels, 0
        self.shape = pixels.shape

    def read(self, box):
        x, y, w, h = (int(v) for v in box)
        self.largest = max(self.largest, w * h)
        return self.pixels[y : y + h, x : x + w]


def slide(height: int, width: int) -> np.ndarray:
    """White but for one corner."""
    pixels = np.full((height, width, 3), 255, np.uint8)
    pixels[: height // 4, : width // 4] = np.random.default_rng(0).integers(
        0, 256, (height // 4, width // 4, 3), dtype=np.uint8
    )
    return pixels


@schemes
def test_uint8_and_lazy_images_are_normalised_by_the_tile(scheme: str, tile: object) -> None:
    module, pixels = small(), slide(97, 120)
    lazy, trunk = Lazy(pixels), StreamingTrunk(module, tile, scheme=scheme)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (trunk.mean, trunk.std))
    expected = gradients(module, module, ((tensor / 255 - mean) / std).double())
    for image in (tensor, lazy):
        found = gradients(lambda _, image=image: trunk(image), module, tensor)
        assert max(errors(found, expected).values()) <= 1e-5  # normalised in float32
    assert lazy.largest < pixels[..., 0].size


@pytest.mark.parametrize(("scheme", "tile"), [("seam", 32), ("halo", 64)])
def test_background_is_computed_once(scheme: str, tile: int) -> None:
    module = small()
    tensor = torch.from_numpy(slide(256, 320)).permute(2, 0, 1)[None]
    trunk = StreamingTrunk(module, tile, scheme=scheme)
    image = trunk.source(tensor)
    whole = image.prepare(tensor, None)
    found = gradients(lambda _: trunk(tensor), module, tensor)
    assert max(errors(found, gradients(module, module, whole)).values()) <= TOLERANCE
    assert trunk.report is not None
    assert trunk.report.skipped > 0.2
    alike = trunk.report
    trunk(torch.from_numpy(np.random.default_rng(1).integers(0, 256, tensor.shape, np.uint8)))
    assert alike.reused > trunk.report.reused == 0


def test_tiles_without_gradient_need_no_backward_pass() -> None:
    module, image = small(), picture(1, 3, 160, 160).requires_grad_()

    def corner(net: nn.Module, x: Tensor) -> Tensor:
        return net(x)[:, :, :5, :5]

    trunk = StreamingTrunk(module, 32)
    found = gradients(lambda x: corner(trunk, x), module, image)
    expected = gradients(lambda x: corner(module, x), module, image)
    assert max(errors(found, expected).values()) <= TOLERANCE
    assert trunk.report is not None
    assert trunk.report.idle >= 16


def test_mask_paints_background_white() -> None:
    module = small()
    pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[0, 0] = mask[2, 1] = True
    painted = torch.where(F.interpolate(mask[None, None].float(), (96, 128)) > 0, tensor, 255)
    trunk = StreamingTrunk(module, 32)
    assert torch.equal(trunk(tensor, mask), trunk(painted.to(torch.uint8)))
    with pytest.raises(StreamingError, match="paints uint8"):
        trunk(tensor.double(), mask)
    with pytest.raises(StreamingError, match=r"of type ndarray.*from_numpy"):
        trunk(tensor, mask.numpy())


class Doubled(nn.Module):
    """Its first convolution reads the image twice, so its channels are not the image's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.kernel = nn.Conv2d(2, 4, 3), nn.Parameter(torch.randn(3, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv(torch.cat([x, x], 1)), F.conv2d(x, self.kernel)], 1)


@pytest.mark.parametrize("module", [nn.Conv2d(1, 2, 3), nn.Conv2d(5, 2, 3), Doubled()])
def test_networks_of_images_whose_channels_nothing_tells(module: nn.Module) -> None:
    channels = getattr(module, "in_channels", 1)
    exact(module.double(), (1, channels, 40, 44), 16)


def test_bytes_of_other_channels_than_the_normalisation_knows_are_refused() -> None:
    module, image = nn.Conv2d(1, 2, 3), torch.randint(0, 256, (1, 1, 40, 50), dtype=torch.uint8)
    with pytest.raises(StreamingError, match=r"1 channels, which mean= \(3 values\)"):
        StreamingTrunk(module, 16)(image)
    trunk = StreamingTrunk(module, 16, mean=(0.5,), std=(0.25,))
    whole = module((image.float() / 255 - 0.5) / 0.25)
    torch.testing.assert_close(trunk(image), whole, rtol=1e-4, atol=1e-5)


def test_wrong_images_are_told() -> None:
    trunk = StreamingTrunk(small(), 32)
    with pytest.raises(StreamingError, match=r"expected \(N, C, H, W\)"):
        trunk(picture(3, 64, 64))
    with pytest.raises(StreamingError, match="too small"):
        StreamingTrunk(settle(nn.Sequential(nn.Conv2d(3, 2, 9))), 32)(picture(1, 3, 8, 8))
    with pytest.raises(StreamingError, match="expected a tensor"):
        trunk("slide.svs")


# Refusals ----------------------------------------------------------------------------------------


class Position(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.embedding = nn.Parameter(torch.zeros(1, 4, 16, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.embedding


class PositionByName(Position):
    def forward(self, x: Tensor) -> Tensor:
        return torch.add(self.conv(x), other=self.embedding)


class PositionAsBound(Position):
    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp(self.conv(x), min=self.embedding)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.mean() > 0 else -x


class Shape(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], -1)


REFUSED = {
    "global pooling": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1)), "'1'.*head"),
    "live batch norm": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4).train()), "'1'.*eval"),
    "dropout": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5).train()), "'1'.*eval"),
    "group norm": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)), "'1'.*statistics"),
    "attention": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.MultiheadAttention(4, 2)), "attention"),
    "upsampling": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Upsample(scale_factor=2)), "enlarge"),
    "position": (Position(), "position embedding"),
    "position by name": (PositionByName(), "position embedding"),
    "position as bound": (PositionAsBound(), "position embedding"),
    "control flow": (Branching(), "cannot be traced"),
    "shape": (Shape(), "shape of the image"),
    "channels first linear": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(8, 2)), "last axis"),
    "softmax over space": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softmax(-1)), "not the channels"),
    "indices": (nn.MaxPool2d(2, return_indices=True), "indices"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_streamed_is_refused_at_construction(name: str) -> None:
    module, message = REFUSED[name]
    with pytest.raises(StreamingError, match=message):
        StreamingTrunk(module, 32)


def test_squeeze_and_excitation_is_named() -> None:
    import torchvision

    module = torchvision.models.mobilenet_v3_small().features.eval()
    with pytest.raises(StreamingError, match=r"1\.block\.1\.avgpool"):
        StreamingTrunk(module, 32)


class Untraceable(nn.Module):
    """Branches on the shape of its input, which torch.fx cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.body = small()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) if x.shape[2] > 1 else x


@pytest.mark.parametrize("size", [(160, 171), (161, 162), (190, 159)])
def test_a_module_that_cannot_be_traced_streams_by_its_stated_field(size: tuple[int, int]) -> None:
    module = settle(Untraceable())
    with pytest.raises(StreamingError, match="field=ReceptiveField"):
        StreamingTrunk(module, 64)
    field = StreamingTrunk(module.body, 64).graph.field
    image = picture(2, 3, *size).requires_grad_()
    trunk = StreamingTrunk(module, (64, 80), field=field)
    assert trunk.plan(*size).tiles > 4
    found = errors(gradients(trunk, module, image), gradients(module, module, image))
    assert max(found.values()) <= TOLERANCE, found
    with pytest.raises(StreamingError, match="smallest tile that works"):
        StreamingTrunk(module, 12, field=field)(image)
    with pytest.raises(StreamingError, match="has not the stride"):
        StreamingTrunk(module, 64, field=field[0]._replace(stride=8))
    with pytest.raises(StreamingError, match="give scheme='halo' and a tile_size"):
        StreamingTrunk(module, field=field)


@pytest.mark.parametrize("tile", [0, -4, 1.5, (32,), "large"])
def test_wrong_tiles_are_told(tile: object) -> None:
    with pytest.raises(StreamingError, match="tile_size"):
        StreamingTrunk(small(), tile)


def test_first_tile_that_reaches_further_than_the_next() -> None:
    """Reflection at the top: the first row of the output is made of rows below the second's."""
    layers = (
        nn.Conv2d(3, 2, 3),
        nn.Conv2d(2, 2, 3, 3, dilation=2),
        nn.ReflectionPad2d((0, 0, 1, 0)),
    )
    exact(settle(nn.Sequential(*layers)), (1, 3, 38, 20), (10, 20), "halo")
