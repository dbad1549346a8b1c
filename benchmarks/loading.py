"""Shards of JPEG pictures to augmented batches beside webdataset and PIL as open_clip puts them together.

    python -m benchmarks.loading

2,000 pictures of 500 × 375, a random part of each (0.9 to 1 of its area, bicubic, 224 × 224), batches of 64. What the
parts are is random, and not compared. open_clip's batches are normalised floats, as its training reads them; ours are
bytes, which the model normalises where it computes: four times less to move.
"""

from __future__ import annotations

import atexit
import io
import shutil
import tempfile
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.beside import Row, Work, main
from mmformer.data.crop import RandomResizedCropSpec
from mmformer.data.image_transform import ImageTransformSpec
from mmformer.data.inputs import ImageInputSpec
from mmformer.data.loading import training_loader
from mmformer.data.samples import RawSample
from mmformer.data.shards import ShardWriter
from mmformer.data.sources import DataSpec

PICTURES, BATCH, WIDTH, HEIGHT = 2_000, 64, 500, 375


@cache
def shards() -> Path:
    """Pictures as busy as photographs, about 50 kB each: clouds of several sizes of grain."""
    folder = Path(tempfile.mkdtemp(prefix="pictures-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with ShardWriter(folder, "pictures", samples_per_shard=500) as writer:
        for number in range(PICTURES):
            file = io.BytesIO()
            _picture(number).save(file, "JPEG", quality=90)
            writer.write(RawSample(f"{number:06d}", {"jpg": file.getvalue()}))
    return folder


def _picture(number: int) -> Image.Image:
    random, pixels = np.random.default_rng(number), np.zeros((HEIGHT, WIDTH, 3), np.float32)
    for grain, share in ((64, 0.5), (16, 0.25), (4, 0.15), (1, 0.06)):
        small = random.integers(0, 256, (HEIGHT // grain + 1, WIDTH // grain + 1, 3), np.uint8)
        cloud = Image.fromarray(small).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        pixels += share * np.asarray(cloud, np.float32)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def loading_spec(workers: int) -> DataSpec:
    """What is read of them."""
    image = ImageInputSpec("jpg", ImageTransformSpec((224, 224)), crop=RandomResizedCropSpec((0.9, 1.0)))
    return DataSpec(str(shards()), image=image, batch_size=BATCH, workers=workers, cache_mib=0)


def loaded(workers: int) -> Work:
    """All whole batches of the pictures."""
    import webdataset
    from open_clip.transform import image_transform
    from torch.utils.data import DataLoader

    spec, batches = loading_spec(workers), PICTURES // BATCH

    def ours() -> int:
        return sum(len(batch.image) for batch in training_loader(spec, {}, 0, 0, batches))

    urls = [str(path) for path in sorted(shards().glob("*.tar"))]
    transform: Any = image_transform(224, is_train=True)

    def theirs() -> int:
        pipeline = webdataset.DataPipeline(
            webdataset.SimpleShardList(urls),
            webdataset.split_by_worker,
            webdataset.tarfile_to_samples(),
            webdataset.shuffle(500, initial=500),
            webdataset.decode("pilrgb"),
            webdataset.rename(image="jpg"),
            webdataset.map_dict(image=transform),
            webdataset.to_tuple("image"),
            webdataset.batched(BATCH, partial=False),
        )
        made = DataLoader(pipeline, batch_size=None, shuffle=False, num_workers=workers)
        return sum(len(batch[0]) for batch in made)

    mine, other = ours(), theirs()
    if abs(mine - other) > workers * BATCH:
        raise SystemExit(f"{mine} pictures were read by us, {other} by webdataset, which may lose a batch a worker.")
    return Work(ours, theirs, None)


ROWS = [
    Row(
        f"loading_{workers}",
        f"{PICTURES:,} JPEG pictures of {WIDTH} × {HEIGHT} to batches of 224 × 224, {workers} workers",
        "webdataset",
        PICTURES // BATCH * BATCH,
        "img",
        1.6,
        0.0,
        partial(loaded, workers),
        "PyTorch's resizer of bytes, not Pillow's; no floats, no copies of tar members",
        dtype=None,
    )
    for workers in (0, 2)
]

if __name__ == "__main__":
    main(ROWS)
