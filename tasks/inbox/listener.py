"""The DICOM listener: accepts CT images by C-STORE and puts each into the inbox, whole, under a name of our own.

An object is written as it was received, into a hidden folder of the inbox; when all of it is there it is made durable and renamed,
and only then the sender is told that it was stored. AE titles are no proof of who sends: the network has to be restricted.
"""

import errno
import filecmp
import hashlib
import hmac
import logging
import os
import shutil
import socket
import tempfile
import threading
import time
import warnings
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from pynetdicom import AE, _config, evt

from storage.errors import ConfigError, StorageError
from storage.files import fsync_directory, naming_path, remove_leftovers, temporary_path
from storage.inbox_ledger import Ledger
from tasks.inbox.config import ListenerConfig

VERIFICATION = "1.2.840.10008.1.1"
# CT Image, Enhanced CT Image, Legacy Converted Enhanced CT Image
CT_CLASSES = ("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
# What an ingest decodes (storage.sources.dicom_codecs); implicit and explicit little endian first.
TRANSFER_SYNTAXES = tuple(
    f"1.2.840.10008.1.2{end}"
    for end in (
        ".1", "", ".2", ".1.99", ".1.98", ".8.1", ".5", ".4.50", ".4.51", ".4.53", ".4.55", ".4.57", ".4.70", ".4.80", ".4.81",
        ".4.90", ".4.91", ".4.201", ".4.202", ".4.203",
    )
)  # fmt: skip
RECEIVED = "received"  # folder in the inbox
_SUCCESS, _NO_RESOURCES = 0x0000, 0xA700
_MAX_PDU = 1 << 20  # of an association request; data come in pieces of the size that we ask for, 16 KiB
_CHECK_EVERY = 32 << 20  # bytes of an association, after which free space is looked at
_ABANDONED_S = 3600.0
_SWEEP_S = 60.0
logger = logging.getLogger("prdit.listener")


class Listener:
    """A C-STORE provider that writes into an inbox.

    Args:
        config: who may send what.
        inbox: folder; made when missing.
        arrivals: folder of the inbox's ledger, which is told of associations that ended properly.
    Raises:
        ConfigError: nobody may send, or the address cannot be listened on.
        StorageError: inbox or ledger cannot be used.
    """

    def __init__(self, config: ListenerConfig, inbox: Path, arrivals: Path) -> None:
        if not config.allowed:
            raise ConfigError(
                "The listener has no AE title that may send (listener.allowed in .prdit/site.yaml, or --allow): name those of your "
                "scanners and archives."
            )
        try:
            socket.create_server((config.host, config.port)).close()  # before anything is made
        except OSError as error:
            raise ConfigError(_refusal(config, error)) from error
        self._config, self._inbox, self._arrivals = config, inbox, arrivals
        with closing(Ledger(arrivals)) as ledger:
            self._secret = ledger.database.secret
        self._bytes: Counter[Any] = Counter()  # of the message that is being received, by association
        self._files: dict[Any, list[str]] = {}  # received, by association
        with naming_path(inbox):
            inbox.mkdir(parents=True, exist_ok=True, mode=0o700)
            remove_leftovers(inbox)
            self._incoming = temporary_path(inbox / "incoming")  # hidden, and named after this process
            self._incoming.mkdir(mode=0o700)
        self._temporary, tempfile.tempdir = tempfile.tempdir, str(self._incoming)
        try:
            self._server = self._entity().start_server(
                (config.host, config.port), block=False, evt_handlers=self._handlers()
            )
        except OSError as error:
            self._remove_incoming()
            raise ConfigError(_refusal(config, error)) from error

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._server.server_address[1])

    def serve(self, stop: threading.Event) -> None:
        """Listen until it is stopped; what is received then is not stored, and its sender knows."""
        try:
            while not stop.wait(_SWEEP_S):
                self._sweep()
        finally:
            self.close()

    def close(self) -> None:
        """End every association, and listening."""
        self._server.ae.shutdown()
        self._remove_incoming()

    def _remove_incoming(self) -> None:
        tempfile.tempdir = self._temporary
        shutil.rmtree(self._incoming, ignore_errors=True)

    # ---- pynetdicom ----------------------------------------------------------------------------------------------

    def _entity(self) -> Any:
        _config.STORE_RECV_CHUNKED_DATASET = True  # into a file, as it comes: memory does not grow with objects
        _config.LOG_HANDLER_LEVEL = "none"
        for name in ("pynetdicom", "pydicom"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # they log values that they received
        warnings.filterwarnings("ignore", module=r"pydicom\..*")
        entity = AE(ae_title=self._config.ae_title)
        entity.require_called_aet = True
        entity.require_calling_aet = list(self._config.allowed)
        entity.maximum_associations = self._config.max_associations
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = self._config.timeout_s
        entity.add_supported_context(VERIFICATION)
        for uid in CT_CLASSES:
            entity.add_supported_context(uid, list(TRANSFER_SYNTAXES))
        return entity

    def _handlers(self) -> list[tuple[Any, Any]]:
        return [
            (evt.EVT_CONN_OPEN, self._on_open),
            (evt.EVT_PDU_RECV, self._on_pdu),
            (evt.EVT_DIMSE_RECV, self._on_message),
            (evt.EVT_C_ECHO, lambda event: _SUCCESS),
            (evt.EVT_C_STORE, self._on_store),
            (evt.EVT_REJECTED, self._on_rejected),
            (evt.EVT_RELEASED, self._on_released),
            (evt.EVT_ABORTED, self._on_closed),
            (evt.EVT_CONN_CLOSE, self._on_closed),
        ]

    def _on_open(self, event: Any) -> None:
        """Bound what a connection may send before anything is known of it, and how long it may be silent within a PDU."""
        connection = event.assoc.dul.socket
        receive = connection.recv

        def bounded(size: int) -> Any:
            if size > _MAX_PDU:
                raise OSError(errno.EMSGSIZE, "a PDU that claims to be larger than any")
            return receive(size)

        connection.recv = bounded
        connection.socket.settimeout(self._config.timeout_s)

    def _on_pdu(self, event: Any) -> None:
        """End an association that sends too much at once, or when the disk is nearly full."""
        before = self._bytes[event.assoc]
        now = self._bytes[event.assoc] = before + len(event.pdu)
        if now > self._config.max_object_mb << 20:
            logger.warning(
                "%s sent an object of more than %d MB (listener.max_object_mb): its association was ended",
                _title(event.assoc),
                self._config.max_object_mb,
            )
            event.assoc.abort()
        elif now // _CHECK_EVERY > before // _CHECK_EVERY and self._is_full():
            event.assoc.abort()

    def _on_message(self, event: Any) -> None:
        self._bytes[event.assoc] = 0

    def _on_store(self, event: Any) -> int:
        """Keep one object; the status for its sender."""
        try:
            if self._is_full():
                return _NO_RESOURCES
            name = self._keep(Path(event.dataset_path), str(event.request.AffectedSOPInstanceUID))
        except OSError as error:
            logger.warning("an object was not stored (%s); its sender was told so", error.strerror or error)
            return _NO_RESOURCES
        self._files.setdefault(event.assoc, []).append(name)
        return _SUCCESS

    def _keep(self, received: Path, uid: str) -> str:
        """Make an object durable under its final name in the inbox; relative path. The same object again changes nothing."""
        digest = hmac.new(self._secret, uid.encode("utf-8", "backslashreplace"), hashlib.sha256).hexdigest()
        name = f"{RECEIVED}/{digest[:2]}/{digest[2:34]}.dcm"
        place = self._inbox / name
        with suppress(FileNotFoundError):
            if filecmp.cmp(received, place, shallow=False):
                return name
        if not place.parent.is_dir():
            for folder in (place.parent.parent, place.parent):
                folder.mkdir(mode=0o700, exist_ok=True)
            fsync_directory(place.parent.parent)
            fsync_directory(self._inbox)
        with received.open("rb") as stream:
            os.fsync(stream.fileno())
        received.replace(place)
        fsync_directory(place.parent)
        return name

    def _is_full(self) -> bool:
        free = shutil.disk_usage(self._inbox).free / 1e9
        if free >= self._config.min_free_gb:
            return False
        logger.warning(
            "%.1f GB are free in the inbox, less than %.1f (listener.min_free_gb): nothing is accepted until more is",
            free,
            self._config.min_free_gb,
        )
        return True

    def _on_rejected(self, event: Any) -> None:
        request = event.assoc.requestor.primitive
        if request.calling_ae_title not in self._config.allowed:
            why = "it may not send (listener.allowed)"
        elif request.called_ae_title != self._config.ae_title:
            why = f"it called another AE title than {self._config.ae_title}"
        else:
            why = f"there are {self._config.max_associations} already (listener.max_associations)"
        logger.warning("an association of %s was rejected: %s", _title(event.assoc), why)

    def _on_released(self, event: Any) -> None:
        """Tell the ledger which files came in an association that ended properly."""
        files = self._files.pop(event.assoc, [])
        if not files:
            return
        logger.info("%d objects received from %s", len(files), _title(event.assoc))
        try:
            with closing(Ledger(self._arrivals)) as ledger:  # SQLite's connections are not shared by threads
                ledger.files.end_association(files)
        except StorageError as error:  # the quiet period says the same, later
            logger.warning("the end of an association was not recorded: %s", error)

    def _on_closed(self, event: Any) -> None:
        """Remove what was received of an object that is not whole."""
        self._bytes.pop(event.assoc, None)
        if (files := self._files.pop(event.assoc, None)) and not event.assoc.is_released:
            logger.warning(
                "the association of %s broke off after %d objects, which are kept", _title(event.assoc), len(files)
            )
        message = getattr(event.assoc.dimse, "message", None)
        path = getattr(message, "_data_set_path", None)
        if path is not None:
            with suppress(OSError):
                Path(path).unlink()

    def _sweep(self) -> None:
        """Remove what associations left that broke off; an object that is being received has been written to just now."""
        for path in list(self._incoming.iterdir()):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _ABANDONED_S:
                    path.unlink()


def _refusal(config: ListenerConfig, error: OSError) -> str:
    what = {
        errno.EADDRINUSE: "another program listens there",
        errno.EACCES: "it is not permitted: ports below 1024 are for root",
        errno.EADDRNOTAVAIL: "this machine does not have that address",
    }.get(error.errno or 0, error.strerror or str(error))
    return (
        f"The listener cannot use {config.host}:{config.port}: {what}. Choose another port or address (listener.port and "
        "listener.host in .prdit/site.yaml), or end that program."
    )


def _title(association: Any) -> str:
    """The AE title that a sender gives itself, printable."""
    text = str(association.requestor.ae_title).strip()
    return repr("".join(c if c.isascii() and c.isprintable() else "?" for c in text[:16]))
