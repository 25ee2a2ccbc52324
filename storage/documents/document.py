"""What every document shares: format version, one reader with one-sentence errors, atomic writing."""

import json
import shlex
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from storage.bucket_path import SCHEME
from storage.errors import DamagedArtifactError, MissingArtifactError, VersionError
from storage.files import json_text, put_if_absent, reading, write_text_atomic
from storage.places import as_place

_PLACES_IN_A_STORE = ("zarr.json", "patient-key-id.json", "commits", "snapshots", "history", "roles", "tombstones")


class Part(BaseModel):
    """Base of the typed parts of documents."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class Document(Part):
    """Base of the documents. In the file, `format_version` stands beside the fields.

    Class attributes:
        FORMAT: version that is written.
        NAME: of the file in an artifact's folder; documents of varying names have none.
        WHAT: what the file is, for messages.
        REMEDY: what to do when it is missing or damaged; `STORE` in it stands for the folder of the volume store it belongs to.
    """

    FORMAT: ClassVar[int]
    NAME: ClassVar[str]
    WHAT: ClassVar[str]
    REMEDY: ClassVar[str]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and check one file.

        Raises:
            MissingArtifactError: there is none.
            DamagedArtifactError: it is not JSON, or of another shape.
            UnreadableError: access is denied, or the disk fails.
            VersionError: written in a version that this prdit does not read.
        """
        with reading(path):
            try:
                data = path.read_bytes()
            except FileNotFoundError as error:
                raise MissingArtifactError(f"No {cls.WHAT} at {path}. {cls.remedy(path)}") from error
            except (IsADirectoryError, NotADirectoryError) as error:
                raise DamagedArtifactError(f"{path} cannot be read ({error.strerror}). {cls.remedy(path)}") from error
        return cls.parse(data, str(path))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the document of an artifact; errors are those of `read`."""
        return cls.read(folder / cls.NAME)

    @classmethod
    def parse(cls, data: bytes, where: str) -> Self:
        """Check the content of one file; `where` names it in errors, which are those of `read`."""
        try:
            values = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise DamagedArtifactError(f"{where} is damaged: it is no complete JSON. {cls.remedy(where)}") from error
        return cls.from_json(values, where)

    @classmethod
    def from_json(cls, values: Any, where: str) -> Self:
        """`parse` of a JSON value that is part of another file."""
        if not isinstance(values, dict) or type(values.get("format_version")) is not int:
            raise DamagedArtifactError(f"{where} is no {cls.WHAT}: it has no format_version. {cls.remedy(where)}")
        version = values["format_version"]
        fields = {key: value for key, value in values.items() if key != "format_version"}
        if version != cls.FORMAT:
            fields = cls.upgraded(fields, version, where)
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"]) or "its content"
            key = key if key.isprintable() else ascii(key)
            raise DamagedArtifactError(
                f"{where} is no {cls.WHAT}: {key}: {first['msg']}. {cls.remedy(where)}"
            ) from error

    @classmethod
    def remedy(cls, where: Path | str) -> str:
        """`REMEDY` for a document at this path, or in the volume store at it."""
        path = as_place(where) if str(where).startswith(SCHEME) else Path(where)
        inside = [place.parent for place in (path, *path.parents) if place.name in _PLACES_IN_A_STORE]
        return cls.REMEDY.replace("STORE", shlex.quote(str(inside[-1] if inside else path)))

    @classmethod
    def upgraded(cls, values: dict[str, Any], version: int, where: str) -> dict[str, Any]:
        """Fields of an older version as those of `FORMAT`.

        Raises: VersionError: there is no way from this version; always for a newer one.
        """
        what = "Update prdit" if version > cls.FORMAT else "Use the prdit that wrote it, or make it again"
        raise VersionError(f"{where} has format_version {version}; this prdit reads {cls.FORMAT}. {what}.")

    def to_json(self) -> dict[str, Any]:
        """The content of the file."""
        return {"format_version": self.FORMAT, **self.model_dump(mode="json")}

    def to_bytes(self) -> bytes:
        """The file's bytes: equal for equal documents."""
        return json_text(self.to_json()).encode()

    def write(self, path: Path) -> None:
        """Write it, in place of one that is there. Raises: UnwritableError."""
        write_text_atomic(path, self.to_bytes().decode())

    def save(self, folder: Path) -> None:
        """Write it into an artifact's folder, in place of one that is there. Raises: UnwritableError."""
        self.write(folder / self.NAME)

    def put(self, path: Path) -> bool:
        """Write it unless there is one; returns whether this call did. Raises: UnwritableError."""
        return put_if_absent(path, self.to_bytes())
