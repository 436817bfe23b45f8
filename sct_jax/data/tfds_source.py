"""Prepared tensorflow-datasets directories (array_record), read without TensorFlow."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from sct_jax.data import png
from sct_jax.data.images import decode_image, read_header
from sct_jax.data.spec import DataSpec, check_split, pad_to_size
from sct_jax.errors import UserError

INFO_FILE = "dataset_info.json"
NEEDS_TENSORFLOW = "pip install -e '.[tf]'"


class TfdsSource:
    """The images and class labels of one split, decoded by Pillow when they are asked for.

    Images of one known square size are padded up to ``image_size``; all others cropped and resized to it.
    """

    def __init__(self, path: str, split: str, image_size: int):
        import tensorflow_datasets as tfds

        self._arguments = (path, split, image_size)
        self._what = f"{path} ({split})"
        builder = _builder(path)
        check_split_expression(builder, split, path)
        self._image_key, self._label_key = _feature_keys(builder.info.features, path)
        try:
            # Bytes of tf.train.Example: the features' own reader takes longer than the pixels.
            self._records = builder.as_data_source(
                split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
            )
        except NotImplementedError as error:
            stored = ", ".join(sorted(file_format.value for file_format in builder.info.available_file_formats()))
            raise UserError(
                f"{path} is stored as {stored}, which has no random access: write it again as array_record; "
                f"with TensorFlow ({NEEDS_TENSORFLOW}), `tfds build --file_format=array_record` does so"
            ) from error
        if not len(self._records):
            raise UserError(f"{self._what} holds no examples")
        self.spec = self._make_spec(builder.info.features, image_size)

    def __reduce__(self):
        return TfdsSource, self._arguments

    def __len__(self) -> int:
        return self.spec.num_examples

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        name = f"{index} of {self._what}"
        encoded, label = self._record(index)
        image = self._decode(encoded, name)
        if image.shape[:2] != (self._native, self._native):
            found = f"{image.shape[1]}x{image.shape[0]}, the first {self._native}x{self._native}"
            raise UserError(f"image {name} is {found}: set image_size to crop and resize all images")
        if label < 0 or label >= max(self.spec.num_classes, 1):
            raise UserError(f"image {name} has label {label}: only 0 to {self.spec.num_classes - 1} are classes")
        return pad_to_size(image, self.spec.image_size, self._what), label

    def read_all(self) -> tuple[np.ndarray, np.ndarray]:
        spec = self.spec
        images = np.empty((len(self), spec.image_size, spec.image_size, spec.channels), np.uint8)
        labels = np.empty(len(self), np.int32)
        for index in range(len(self)):
            images[index], labels[index] = self[index]
        return images, labels

    def _decode(self, encoded: bytes, name: str) -> np.ndarray:
        image = png.decode_stored(encoded)
        size = self._resize_to
        if image is not None and image.shape[2] == self.spec.channels and size in (0, max(image.shape[:2])):
            return image  # one that is not square is complained about later
        return decode_image(io.BytesIO(encoded), name, self.spec.channels, self._resize_to)

    def _record(self, index: int) -> tuple[bytes, int]:
        """Returns the encoded image of an example and its label."""
        from tensorflow_datasets.proto import tf_example_pb2

        try:
            features = tf_example_pb2.Example.FromString(self._records[index]).features.feature
            label = features[self._label_key].int64_list.value[0] if self._label_key else 0
            return features[self._image_key].bytes_list.value[0], label
        except Exception as error:  # the reader and the parser of records raise what they like
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"cannot read example {index} of {self._what}: {reason}; prepare it again") from error

    def _make_spec(self, features: Any, image_size: int) -> DataSpec:
        """Settles the images' shape: from the features if they say it, else from the first image."""
        height, width, depth = features[self._image_key].shape
        fixed = height is not None and height == width
        header = read_header(io.BytesIO(self._record(0)[0]), f"0 of {self._what}")
        self._resize_to = 0 if fixed else image_size
        if not fixed and not image_size and header.width != header.height:
            found = f"{header.width}x{header.height}, not square"
            raise UserError(f"image 0 of {self._what} is {found}: set image_size to crop and resize all images")
        self._native = height if fixed else image_size or header.width
        pad_to_size(np.empty((self._native, self._native, 1)), image_size, self._what)
        classes = features[self._label_key] if self._label_key else None
        return DataSpec(
            image_size=image_size or self._native,
            channels=1 if depth == 1 else 3,
            num_classes=classes.num_classes if classes else 0,
            num_examples=len(self._records),
            class_names=tuple(classes.names) if classes else (),
        )


def open_tfds(path: str, split: str, image_size: int) -> TfdsSource:
    """Opens one split of the data set in a directory that ``prepare`` or tensorflow-datasets wrote."""
    return TfdsSource(path, split, image_size)


def tfds_splits(path: str) -> tuple[str, ...]:
    """Returns the splits of a prepared directory."""
    return tuple(_builder(path).info.splits)


def check_split_expression(builder: Any, split: str, path: str) -> None:
    """Accepts the names of splits, ``all``, and expressions such as ``train[:90%]`` or ``train+test``."""
    splits = tuple(builder.info.splits)
    try:
        builder.info.splits[split]
    except (KeyError, ValueError):
        check_split(split, (*splits, "all"), path)


def _builder(path: str) -> Any:
    import tensorflow_datasets as tfds

    if not path:
        raise UserError("tfds needs a path: that of a prepared data set (see `sct-jax prepare`)")
    directory = Path(path).expanduser()
    if not (directory / INFO_FILE).is_file():
        raise UserError(_no_data_set(directory, path))
    try:
        return tfds.builder_from_directory(directory)
    except Exception as error:  # damaged JSON, unknown features, ...: whatever the reader of the metadata raises
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"cannot read the data set in {directory}: {reason}; prepare it again") from error


def _no_data_set(directory: Path, path: str) -> str:
    """Says what to do about a directory that is not there or holds no data set."""
    import tensorflow_datasets as tfds

    if not directory.exists() and path.split("/")[0] in tfds.list_builders(with_community_datasets=False):
        return (
            f"there is no directory {path}; the stock tensorflow-datasets builder of that name needs TensorFlow to "
            f"prepare: {NEEDS_TENSORFLOW}, run `tfds build {path} --file_format=array_record`, and give the "
            "directory that it writes"
        )
    if not directory.exists():
        return f"no such directory: {directory}; write it with `sct-jax prepare`"
    inside = sorted(file.parent for depth in ("*", "*/*") for file in directory.glob(f"{depth}/{INFO_FILE}"))
    if inside:
        return f"{directory} is not a prepared data set itself (no {INFO_FILE}): did you mean {inside[-1]}?"
    return f"{directory} is not a prepared data set (no {INFO_FILE}): write one with `sct-jax prepare`"


def _feature_keys(features: Any, path: str) -> tuple[str, str | None]:
    """Returns the names of the image feature and of the label feature (None without labels)."""
    import tensorflow_datasets as tfds

    entries = dict(features.items()) if hasattr(features, "items") else {}
    images = [key for key, feature in entries.items() if isinstance(feature, tfds.features.Image)]
    labels = [key for key, feature in entries.items() if isinstance(feature, tfds.features.ClassLabel)]
    image = "image" if "image" in images else images[0] if len(images) == 1 else None
    label = "label" if "label" in labels else labels[0] if len(labels) == 1 else None
    if image is None:
        raise UserError(f"{path} needs one image feature, or one named 'image'; it has {', '.join(entries)}")
    if entries[image].np_dtype != np.uint8:
        raise UserError(f"the images of {path} are {np.dtype(entries[image].np_dtype)}: only 8-bit images can be used")
    return image, label
