"""Locations: one way to name, read and write a file or folder, local or on an object store.

A `Location` is a string with operations: an absolute local path, or a URI that pyarrow can open
(`s3://bucket/key?endpoint_override=host:port&scheme=http`, `gs://`, `abfs://`). It is cheap,
hashable and picklable; the file system behind it is opened once in each process. A write is
atomic: locally a temporary name, flush, fsync and rename, on an object store one put. What fails is
tried again or explained as `heliostat.retry` says.

This is not a virtual file system: no appending, no locks, no links, no partial writes.
"""

from __future__ import annotations

import builtins
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, TypeVar
from urllib.parse import SplitResult, quote, unquote, urlsplit, urlunsplit

from heliostat.errors import UserError
from heliostat.retry import with_retries

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.fs

T = TypeVar("T")

SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs", "file")
_CHUNK_BYTES = 8 << 20
_PARALLEL_TRANSFERS = 8
_TEMPORARY = re.compile(r"^\..+\.[0-9a-f]{32}\.tmp$")


def digest(location: Location | Path) -> str:
    """The SHA-256 of a file in hexadecimal digits, read in pieces."""
    if isinstance(location, Path):
        location = Location.of(location)
    if location.is_local:
        return with_retries(partial(_digest_local, location.local_path), location.uri)
    return with_retries(partial(_digest_remote, location), location.uri)


def temporary_path(target: Path) -> Path:
    """A new name beside a file, for what will be renamed to it when it is whole."""
    return target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")


def move_into_place(temporary: Path, target: Path) -> None:
    """Rename a finished local file, so that it is whole under its name even after a power cut."""
    _sync(temporary)
    temporary.replace(target)
    _sync(target.parent)


def remove_temporaries(folder: Location) -> int:
    """Delete what writes that were cut off left in a folder; returns how many there were."""
    if not folder.is_local or not folder.is_dir():
        return 0
    orphans = [path for path in folder.local_path.iterdir() if _TEMPORARY.match(path.name)]
    for path in orphans:
        path.unlink(missing_ok=True)
    return len(orphans)


@dataclass(frozen=True, order=True)
class Location:
    """A file or folder on any storage; make one with `Location.of`."""

    uri: str
    """An absolute local path, or a URI. `Location.of(location.uri)` gives the location back."""

    @classmethod
    def of(cls, path_or_uri: str | Path | Location) -> Location:
        """The location of a local path (relative ones start at the current folder) or a URI."""
        if isinstance(path_or_uri, Location):
            return path_or_uri
        text = str(path_or_uri)
        if not text:
            raise UserError(
                "an empty string is no location: give a path or a URI like s3://bucket/key"
            )
        scheme = re.match(r"^([A-Za-z][A-Za-z0-9+.-]*)://", text)
        if isinstance(path_or_uri, Path) or scheme is None:
            return cls(os.path.normpath(Path(text).expanduser().absolute()))
        if scheme[1].lower() not in SCHEMES:
            near = get_close_matches(scheme[1].lower(), SCHEMES, n=1)
            hint = f"did you mean {near[0]}://?" if near else f"known are {', '.join(SCHEMES)}"
            raise UserError(f"{text}: no storage is known by the scheme {scheme[1]!r}; {hint}")
        parts = urlsplit(text)
        if parts.scheme == "file":
            return cls(os.path.normpath(unquote(parts.path)))
        if not parts.netloc:
            raise UserError(f"{text} names no bucket; expected {parts.scheme}://bucket/key")
        if parts.password is not None:
            raise UserError(
                f"{parts.scheme}://...@{parts.hostname}: a URI is written to configs and logs"
                " and must not hold a secret; give credentials through the environment"
            )
        return cls(urlunsplit(parts._replace(path=parts.path.rstrip("/"), fragment="")))

    def __str__(self) -> str:
        return self.uri

    def __truediv__(self, name: str) -> Location:
        """A file or folder below this one; `name` may hold slashes."""
        if self.is_local:
            return Location(str(Path(self.uri) / name))
        parts = self._parts
        path = f"{parts.path}/{quote(name.strip('/'))}"
        return Location(urlunsplit(parts._replace(path=path)))

    @property
    def _parts(self) -> SplitResult:
        return urlsplit(self.uri)

    @property
    def is_local(self) -> bool:
        """Whether this is a path of this machine."""
        return "://" not in self.uri

    @property
    def local_path(self) -> Path:
        """The path on this machine; a UserError when there is none."""
        if not self.is_local:
            raise UserError(f"{self.uri} is not on this machine; a local path is needed here")
        return Path(self.uri)

    @property
    def name(self) -> str:
        """The last part of the path; for a whole bucket its name."""
        if self.is_local:
            return Path(self.uri).name
        return unquote(PurePosixPath(self._parts.path).name) or self._parts.netloc

    @property
    def parent(self) -> Location:
        """The folder that holds this; a bucket is its own parent."""
        if self.is_local:
            return Location(str(Path(self.uri).parent))
        path = str(PurePosixPath(self._parts.path or "/").parent).rstrip("/")
        return Location(urlunsplit(self._parts._replace(path=path)))

    def filesystem(self) -> tuple[pyarrow.fs.FileSystem, str]:
        """The pyarrow file system, opened once in each process, and the path within it."""
        if self.is_local:
            return _local_filesystem(), self.uri
        parts = self._parts
        root = urlunsplit(parts._replace(path=""))
        opened = with_retries(partial(_open_filesystem, root), self.uri)
        return opened, parts.netloc.rpartition("@")[2] + unquote(parts.path)

    def exists(self) -> bool:
        """Whether there is a file or folder here."""
        return self._kind() != "NotFound"

    def is_dir(self) -> bool:
        """Whether there is a folder here."""
        return self._kind() == "Directory"

    def size(self) -> int:
        """Bytes of the file."""
        filesystem, path = self.filesystem()
        info = self._try(lambda: filesystem.get_file_info(path))
        if info.type.name == "NotFound":
            raise UserError(f"{self.uri} does not exist")
        if info.type.name == "Directory":
            raise UserError(f"{self.uri} is a folder; a file was expected")
        return int(info.size)

    def list(self) -> list[Location]:
        """What the folder holds, sorted, without writes under way; [] when there is no folder."""
        return [self / name for name in sorted({info.base_name for info in self._children()})]

    def sizes(self) -> dict[str, int]:
        """The bytes of every file that lies directly in the folder, by name, from one listing."""
        return {i.base_name: int(i.size) for i in self._children() if i.type.name == "File"}

    def read_bytes(self) -> bytes:
        """The whole file."""
        if self.is_local:
            return self._try(self.local_path.read_bytes)
        return self._try(lambda: _read_remote(self))

    def read_text(self) -> str:
        """The whole file, decoded as UTF-8."""
        return self.read_bytes().decode("utf-8")

    def write_bytes(self, data: bytes) -> None:
        """Write the whole file, with its folders: afterwards all of it is there or nothing."""
        if self.is_local:
            self._try(lambda: _write_local(self.local_path, lambda file: file.write(data)))
        else:
            self._try(lambda: _put_remote(self, data))

    def write_text(self, text: str) -> None:
        """Write the whole file in UTF-8, atomically."""
        self.write_bytes(text.encode("utf-8"))

    def make_dir(self) -> None:
        """Make the folder and those above it; no error if it is there."""
        filesystem, path = self.filesystem()
        self._try(lambda: filesystem.create_dir(path, recursive=True))

    def delete(self) -> None:
        """Delete the file or the whole tree; no error if there is nothing."""
        if self.is_local:
            self._try(lambda: _delete_local(self.local_path))
        else:
            self._try(lambda: _delete_remote(self))

    def upload(self, local: Path) -> None:
        """Copy a local file or the content of a local folder to here, every file atomically."""
        if not local.exists():
            raise UserError(f"{local} does not exist, so it cannot be copied to {self.uri}")
        if local.is_file():
            self._upload_file(local)
            return
        files = sorted(path for path in local.rglob("*") if path.is_file())
        pairs = [(self / path.relative_to(local).as_posix(), path) for path in files]
        if not pairs:
            self.make_dir()
        _in_parallel([partial(target._upload_file, path) for target, path in pairs])

    def download(self, local: Path) -> None:
        """Copy the file, or the content of the folder, to a local path, every file atomically."""
        kind = self._kind()
        if kind == "NotFound":
            raise UserError(f"{self.uri} does not exist")
        if kind == "File":
            self._download_file(local)
            return
        local.mkdir(parents=True, exist_ok=True)
        names = self._files_below()
        _in_parallel([partial((self / name)._download_file, local / name) for name in names])

    def open_input(self) -> pa.NativeFile:
        """Open the file for reading at any position."""
        filesystem, path = self.filesystem()
        return self._try(lambda: filesystem.open_input_file(path))

    def _kind(self) -> str:
        filesystem, path = self.filesystem()
        return str(self._try(lambda: filesystem.get_file_info(path)).type.name)

    def _children(self) -> builtins.list[pyarrow.fs.FileInfo]:
        import pyarrow.fs

        kind = self._kind()
        if kind == "NotFound":
            return []
        if kind == "File":
            raise UserError(f"{self.uri} is a file; a folder was expected")
        filesystem, path = self.filesystem()
        selector = pyarrow.fs.FileSelector(path, allow_not_found=True)
        infos = self._try(lambda: filesystem.get_file_info(selector))
        return [info for info in infos if not _TEMPORARY.match(info.base_name)]

    def _files_below(self) -> builtins.list[str]:
        """The files of the whole tree, relative to this folder."""
        import pyarrow.fs

        filesystem, path = self.filesystem()
        selector = pyarrow.fs.FileSelector(path, recursive=True)
        infos = self._try(lambda: filesystem.get_file_info(selector))
        files = sorted(info.path for info in infos if info.type.name == "File")
        names = [PurePosixPath(file).relative_to(path) for file in files]
        return [str(name) for name in names if not _TEMPORARY.match(name.name)]

    def _try(self, action: Callable[[], T]) -> T:
        return with_retries(action, self.uri)

    def _upload_file(self, local: Path) -> None:
        def copy(target: IO[bytes]) -> None:
            with local.open("rb") as source:
                shutil.copyfileobj(source, target, _CHUNK_BYTES)

        place = f"the copy of {local} to {self.uri}"
        if self.is_local:
            with_retries(lambda: _write_local(self.local_path, copy), place)
        else:
            with_retries(lambda: _put_remote(self, _mapped(local)), place)

    def _download_file(self, local: Path) -> None:
        def copy(target: IO[bytes]) -> None:
            filesystem, path = self.filesystem()
            with filesystem.open_input_file(path) as source:
                shutil.copyfileobj(source, target, _CHUNK_BYTES)

        with_retries(lambda: _write_local(local, copy), f"the copy of {self.uri} to {local}")


def _in_parallel(actions: list[Callable[[], None]]) -> None:
    """Run every action and raise the first failure."""
    with ThreadPoolExecutor(max_workers=_PARALLEL_TRANSFERS) as pool:
        for future in [pool.submit(action) for action in actions]:
            future.result()


@lru_cache(maxsize=64)
def _open_filesystem(root: str) -> pyarrow.fs.FileSystem:
    import pyarrow as pa
    import pyarrow.fs

    try:
        return pyarrow.fs.FileSystem.from_uri(root)[0]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(f"{root}: {error}") from error


@lru_cache(maxsize=1)
def _local_filesystem() -> pyarrow.fs.FileSystem:
    import pyarrow.fs

    return pyarrow.fs.LocalFileSystem()


def _write_local(target: Path, fill: Callable[[IO[bytes]], object]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(target)
    try:
        with temporary.open("wb") as file:
            fill(file)
        move_into_place(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put_remote(location: Location, data: bytes | pa.Buffer) -> None:
    """Write in one call: a stream that is closed half-way would commit its half (pyarrow 25)."""
    filesystem, path = location.filesystem()
    stream = filesystem.open_output_stream(path)
    stream.write(data)
    stream.close()


def _mapped(path: Path) -> bytes | pa.Buffer:
    """The content of a local file without reading it into memory; an empty file has no map."""
    import pyarrow as pa

    if path.stat().st_size == 0:
        return b""
    with pa.memory_map(str(path)) as file:
        return file.read_buffer()


def _read_remote(location: Location) -> bytes:
    filesystem, path = location.filesystem()
    with filesystem.open_input_file(path) as file:
        return bytes(file.read())


def _delete_local(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _delete_remote(location: Location) -> None:
    filesystem, path = location.filesystem()
    kind = filesystem.get_file_info(path).type.name
    with suppress(FileNotFoundError):
        if kind == "Directory":
            filesystem.delete_dir(path)
        elif kind == "File":
            filesystem.delete_file(path)


def _digest_local(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_remote(location: Location) -> str:
    filesystem, path = location.filesystem()
    total = hashlib.sha256()
    with filesystem.open_input_file(path) as file:
        while chunk := file.read(_CHUNK_BYTES):
            total.update(chunk)
    return total.hexdigest()
