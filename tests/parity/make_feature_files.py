"""Make the feature networks' files of tests/interop/checkpoints: the layouts people have, full size where it is fixed.

    python tests/parity/make_feature_files.py --edm-checkout DIR --dinov2-checkout DIR [--out DIR]

Needed for this script only: torch, pytorch-fid, torch-fidelity, transformers, and checkouts of github.com/NVlabs/edm
(its ``persistence``, by which NVIDIA's pickles hold their classes) and github.com/facebookresearch/dinov2. Each array
holds one number, ``drawn_feature_networks.number_of(name)``: files of 90 MB are some kilobytes when compressed by xz.
"""

import argparse
import io
import lzma
import pickle
import sys
import tempfile
from pathlib import Path
from unittest import mock

import torch
from drawn_feature_networks import number_of


def main() -> None:
    """Parse the command line, make the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edm-checkout", type=Path, required=True)
    parser.add_argument("--dinov2-checkout", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "interop" / "checkpoints")
    arguments = parser.parse_args()
    sys.path[:0] = [str(arguments.edm_checkout), str(arguments.dinov2_checkout)]
    for name, make in FILES.items():
        with torch.no_grad():
            content = make()
        path = arguments.out / f"{name}.xz"
        path.write_bytes(lzma.compress(content, preset=9))
        print(f"{path}: {len(content) / 2**20:.1f} MiB, compressed {path.stat().st_size / 2**10:.0f} KiB")


def filled(module: torch.nn.Module) -> torch.nn.Module:
    """The module with its number in each array."""
    for name, value in module.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            value.fill_(number_of(name))
    return module.eval()


def saved(content: object, **options) -> bytes:
    """A file of torch.save."""
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def pytorch_fid() -> bytes:
    """pytorch-fid's state_dict, in the container before PyTorch 1.6."""
    from pytorch_fid import inception

    with (
        mock.patch.object(inception, "load_state_dict_from_url"),
        mock.patch("torch.nn.Module.load_state_dict"),
    ):
        net = filled(inception.fid_inception_v3())
    return saved(net.state_dict(), _use_new_zipfile_serialization=False)


def torch_fidelity() -> bytes:
    """torch-fidelity's state_dict."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Extractor

    with mock.patch.object(Extractor, "load_state_dict"), tempfile.NamedTemporaryFile(suffix=".pth") as file:
        torch.save({}, file.name)
        net = Extractor("inception", ["2048"], feature_extractor_weights_path=file.name)
    return saved(filled(net).state_dict())


def torchscript() -> bytes:
    """The graph with NVIDIA's names as a TorchScript program."""
    import torch_inception_graph as graph

    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(filled(graph.InceptionV3())), buffer)
    return buffer.getvalue()


def nvidia_pickle() -> bytes:
    """The graph with NVIDIA's names as a pickle of persistent objects, the source code of its classes beside them."""
    import torch_inception_graph as graph
    from torch_utils import persistence

    for name in ("Convolution", "Joined", "Widest", "InceptionV3"):
        setattr(graph, name, persistence.persistent_class(getattr(graph, name)))
    return pickle.dumps(filled(graph.InceptionV3()))


def meta() -> bytes:
    """DINOv2's smallest published size."""
    from dinov2.hub.backbones import dinov2_vits14

    return saved(filled(dinov2_vits14(pretrained=False)).state_dict())


def hugging_face() -> bytes:
    """A small DINOv2 as transformers saves it."""
    from safetensors.torch import load_file, save
    from transformers import Dinov2Config, Dinov2Model

    sizes = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=1, image_size=518, patch_size=14)
    with tempfile.TemporaryDirectory() as folder:
        Dinov2Model(Dinov2Config(**sizes)).save_pretrained(folder)
        arrays = load_file(Path(folder) / "model.safetensors")
    return save({name: value.fill_(number_of(name)) for name, value in arrays.items()}, {"format": "pt"})


FILES = {
    "inception_pytorch_fid.pth": pytorch_fid,
    "inception_torch_fidelity.pth": torch_fidelity,
    "inception_torchscript.pt": torchscript,
    "inception_nvidia.pkl": nvidia_pickle,
    "dinov2_vits14.pth": meta,
    "dinov2_hugging_face.safetensors": hugging_face,
}

if __name__ == "__main__":
    main()
