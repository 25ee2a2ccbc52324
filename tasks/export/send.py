"""Sending to a DICOM node (C-STORE): it must answer C-ECHO first, and say of every image that it is stored.

An image has the same UIDs whenever it is sent, so a node keeps it once, however often it comes. A volume has an association of its
own. AE titles are no proof of who receives, and nothing is encrypted: the network has to be restricted.
"""

import logging
import re
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

from pynetdicom import AE, _config
from pynetdicom.status import STORAGE_SERVICE_CLASS_STATUS, code_to_category

from storage.errors import InputError, NodeError, as_input_error
from storage.verdicts import counted
from tasks.export.sendable import Sendable
from tasks.inbox.config import check_ae_title
from tasks.run.progress import Advance

VERIFICATION = "1.2.840.10008.1.1"
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
_SYNTAXES = ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"]  # explicit and implicit little endian, which every node takes
_NODE = re.compile(r"(?P<title>[^@]+)@\[?(?P<host>[^@\[\]]+)\]?:(?P<port>\d{1,5})")
_REJECTIONS = {  # PS3.8 table 9-21, by source and reason
    (1, 3): "it does not know our AE title {calling}: have it added there, or give another (--calling)",
    (1, 7): "it has another AE title than {title}: correct the node's name",
    (3, 1): "it has as many associations as it takes: send again later",
    (3, 2): "it has as many associations as it takes: send again later",
}
_REMEDIES = {  # first and last status of a range, PS3.4 table B.2-1
    (0xA700, 0xA7FF): "It is out of resources, as with a full disk: make room there",
    (0x0124, 0x0124): "It does not allow us to store: have that changed there",
    (0x0122, 0x0122): "It does not take CT images: have that changed there",
}


@dataclass(frozen=True)
class Node:
    """A DICOM node and how it is called.

    Attributes:
        title: its AE title.
        host, port: its address.
        calling: our AE title.
        timeout_s: longest wait for an answer.
    """

    title: str
    host: str
    port: int
    calling: str = "PRDIT"
    timeout_s: float = 60.0

    @classmethod
    def parse(cls, text: str, calling: str = "PRDIT", timeout_s: float = 60.0) -> "Node":
        """A node of the form TITLE@HOST:PORT. Raises: InputError."""
        found = _NODE.fullmatch(text)
        if found is None or not 0 < int(found["port"]) < 65536:
            raise InputError(
                f"{text!r} is no DICOM node; expected TITLE@HOST:PORT, for example ORTHANC@127.0.0.1:4242."
            )
        for title in (found["title"], calling):
            with as_input_error():
                check_ae_title(title)
        return cls(found["title"], found["host"], int(found["port"]), calling, timeout_s)

    def __str__(self) -> str:
        return f"{self.title}@{self.host}:{self.port}"


@dataclass
class Sent:
    """What a node has stored.

    Attributes:
        volumes: ids of those of which it has every image.
        num_images: stored.
        warnings: images that it stored with a remark, by the remark.
    """

    volumes: list[str] = field(default_factory=list)
    num_images: int = 0
    warnings: Counter[str] = field(default_factory=Counter)


def send(volumes: Sequence[Sendable], node: Node, progress: Advance) -> Sent:
    """Send volumes to a node; the first image that it does not store ends it.

    Args:
        volumes: what to send.
        node: to whom.
        progress: called with (images stored, of all volumes).
    Raises:
        NodeError: the node cannot be reached, refuses, or does not store an image; the message says what it has.
        StorageError: a volume cannot be read.
    """
    for name in ("pynetdicom", "pydicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # they log what they send
    _config.LOG_HANDLER_LEVEL = "none"
    total, sent = sum(volume.num_images for volume in volumes), Sent()
    _echo(node)
    for volume in volumes:
        images = volume.images()
        with _associated(node, CT_IMAGE) as association:
            for image in images:
                _store(association, image, node, sent, total)
                sent.num_images += 1
                progress(sent.num_images, total)
        sent.volumes.append(volume.volume_id)
    return sent


def _echo(node: Node) -> None:
    """Ask whether the node answers. Raises: NodeError."""
    try:
        socket.create_connection((node.host, node.port), timeout=node.timeout_s).close()
    except OSError as error:
        raise NodeError(
            f"{node} cannot be reached ({error.strerror or error}): check host and port, and that the node runs."
        ) from error
    with _associated(node, VERIFICATION) as association:
        status = association.send_c_echo()
    if "Status" not in status or status.Status != 0:
        raise NodeError(f"{node} does not answer C-ECHO with success: nothing was sent. Look at the node's log.")


def _store(association: Any, image: Any, node: Node, sent: Sent, total: int) -> None:
    """Send one image. Raises: NodeError: it is not stored."""
    try:
        status = association.send_c_store(image)
    except RuntimeError:  # the association has ended meanwhile
        status = {}
    code = getattr(status, "Status", None)
    if code is None:
        _fail(
            f"{node} cut the connection, or gave no answer for {node.timeout_s:g} s",
            sent,
            total,
            "Look at the node's log and the network",
        )
    known = STORAGE_SERVICE_CLASS_STATUS.get(code)
    meaning = f"status 0x{code:04X}" + (f", {known[1]}" if known and known[1] else "")
    category = code_to_category(code)
    if category == "Warning":
        sent.warnings[meaning] += 1
    elif category != "Success":
        remedies = (text for (first, last), text in _REMEDIES.items() if first <= code <= last)
        remedy = next(remedies, "Look at the node's log")
        _fail(f"{node} did not store an image ({meaning})", sent, total, remedy)


def _fail(what: str, sent: Sent, total: int, remedy: str) -> NoReturn:
    raise NodeError(
        f"{what}: it has {sent.num_images} of {counted(total, 'image')}, {counted(len(sent.volumes), 'volume')} whole. {remedy}. "
        "Sending again does no harm to what it has."
    )


@contextmanager
def _associated(node: Node, sop_class: str) -> Iterator[Any]:
    """An association that takes one class of objects; released at the end, aborted where the block raises.

    Raises: NodeError: the node refuses it.
    """
    entity = AE(ae_title=node.calling)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = node.timeout_s
    entity.add_requested_context(sop_class, _SYNTAXES)
    association = entity.associate(node.host, node.port, ae_title=node.title)
    if not association.is_established:
        raise NodeError(f"{node} refuses an association: {_refusal(association, node, sop_class)}.")
    try:
        yield association
    except BaseException:
        association.abort()
        raise
    association.release()


def _refusal(association: Any, node: Node, sop_class: str) -> str:
    """Why there is no association."""
    if association.is_rejected:
        answer = association.acceptor.primitive
        known = _REJECTIONS.get((answer.result_source, answer.diagnostic))
        return known.format(calling=node.calling, title=node.title) if known else answer.reason_str
    if association.rejected_contexts:
        what = "CT Image Storage" if sop_class == CT_IMAGE else "Verification"
        return f"it does not take {what} in little endian (no presentation context): have that changed there"
    return f"it closed the connection, or gave no answer for {node.timeout_s:g} s: look at the node's log"
