"""What is seen of a sampling while it runs: progress, and pictures of the newest volumes."""

import io
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from storage.artifacts import SCRATCH
from storage.files import write_bytes_atomic
from storage.volume_store import VolumeStore
from tasks.model.slices import draw_volumes, png_bytes
from tasks.run.progress import Advance

PREVIEWS = "previews"  # in the scratch folder
SHOWN = 4  # volumes of a picture
_LOOK_S = 1.0  # how often the store is looked at
_THUMBNAIL = 900  # pixels: wide enough to see an anatomy, small enough for Prefect's database
_QUALITY = 80
Show = Callable[[Path, int], None]


class Watch:
    """Looks at what is committed, wherever it was drawn.

    Args:
        store: of the samples.
        directory: of the artifact; pictures go into its scratch folder.
        counts: (volumes asked for, evaluations of the model per volume).
        every: volumes after which there is another picture.
        progress: called with (evaluations done, total).
        show: given each picture and the number of volumes then; None: no pictures are drawn.
    """

    def __init__(
        self,
        store: VolumeStore,
        directory: Path,
        counts: tuple[int, int],
        every: int,
        progress: Advance,
        show: Show | None,
    ) -> None:
        self._store, self._folder = store, directory / SCRATCH / PREVIEWS
        self._asked, self._each = counts
        self._every, self._progress, self._show = every, progress, show
        self._seen = set(store.volume_ids())
        self._before = len(self._seen)
        self._last = 0.0
        progress(self._before * self._each, self._asked * self._each)

    def tick(self) -> None:
        """Report what workers have committed."""
        if self._looked():
            self._progress(len(self._seen) * self._each, self._asked * self._each)

    def drawn(self, evaluations: int) -> None:
        """Report evaluations of this process."""
        total = self._asked * self._each
        self._progress(min(total, self._before * self._each + evaluations), total)
        self._looked()

    def finish(self) -> None:
        """Report the end; the last volumes are shown."""
        self._last = 0.0
        self._looked()
        self._draw(sorted(self._seen))
        self._progress(self._asked * self._each, self._asked * self._each)

    def _looked(self) -> bool:
        """Look at the store, unless it was looked at just now; draw a picture where one is due."""
        now = time.monotonic()
        if self._last and now - self._last < _LOOK_S:
            return False
        self._last = now
        before, found = len(self._seen), set(self._store.volume_ids())
        new, self._seen = sorted(found - self._seen), found
        if len(found) // self._every > before // self._every:
            self._draw(new)
        return True

    def _draw(self, names: list[str]) -> None:
        """A picture of the last of some volumes, unless there is one for so many volumes."""
        count = len(self._seen)
        path = self._folder / f"volumes-{count:06d}.png"
        if self._show is None or not names or path.exists():
            return
        picture = draw_volumes([self._store.read_level(name) for name in names[-SHOWN:]])
        write_bytes_atomic(path, png_bytes(picture))
        self._show(path, count)


def thumbnail(picture: Path) -> bytes:
    """A picture as a small JPEG."""
    image = Image.open(picture).convert("L")
    image.thumbnail((_THUMBNAIL, 10 * _THUMBNAIL))
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=_QUALITY)
    return stream.getvalue()
