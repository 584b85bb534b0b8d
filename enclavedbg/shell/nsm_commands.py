"""Commands about the secure module: its registers, what it was asked, documents, faults, catchpoints."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from enclavedbg.machine.catchpoints import Catchpoint
from enclavedbg.nsm.encoding import value_bytes
from enclavedbg.nsm.events import NsmExchange, NsmRequest
from enclavedbg.nsm.faults import ACTIONS, parse_fault
from enclavedbg.nsm.pcr import identity_registers
from enclavedbg.nsm.selector import parse_selector
from enclavedbg.nsm.wire import ErrorCode, SignedDocument, request_types
from enclavedbg.shell.history_commands import shown_history
from enclavedbg.shell.machine_commands import COMMANDS, number
from enclavedbg.shell.session import Session
from enclavedbg.shell.table import CommandError
from enclavedbg.shell.text import Text, counted, fields, joined, lines, size

if TYPE_CHECKING:
    from enclavedbg.nsm.verify import Report

_REQUESTS = "|".join(kind.name for kind in request_types())
_ERRORS = "|".join(code.name for code in ErrorCode)


@COMMANDS.add("pcrs", usage="[all]", completes="all")
async def pcrs(session: Session, words: list[str]) -> Text:
    """Show the module's PCRs, against those of the file.

    Those that are zero are left out, unless `pcrs all` asks for them. PCR4 measures the parent's instance id, and PCR3
    its role.
    """
    if words not in ([], ["all"]):
        raise CommandError("expected: pcrs [all]")
    bank = session.enclave.nsm.bank
    instance = session.enclave.nsm.module_id.partition("-enc")[0]
    measured = session.enclave.measurements.as_mapping()
    rows: list[Text] = []
    for index, value in enumerate(bank.values()):
        if not words and not any(value) and index not in measured:
            continue
        locked, _ = bank.describe(index)
        row: Text = [("name", f"PCR{index:<2} "), ("", value.hex()), ("dim", " locked" if locked else " open  ")]
        if index in measured:
            same = measured[index] == value
            row.append(("good", "  = file") if same else ("bad", f"  the file has {measured[index].hex()[:16]}..."))
        elif index == 4 and value == identity_registers(instance_id=instance)[4]:
            row.append(("good", f"  = {instance}"))
        rows.append(row)
    return joined(rows)


@COMMANDS.add("nsm", usage="[N|explain|save FILE]", completes="explain|save")
async def nsm(session: Session, words: list[str]) -> Text:
    """Show the last requests, or a guest's document.

    nsm 5                the last five
    nsm explain          the last document that the guest got, as a tree, with every check of a verifier
    nsm save doc.bin     that document, for `enclavedbg attest explain doc.bin`, or for your own verifier
    """
    match words:
        case ["explain"]:
            return _explained(await asyncio.to_thread(_verified, session, _last_document(session)))
        case ["save", name]:
            return _save(_last_document(session), Path(name).expanduser())
        case ["explain" | "save", *_]:
            raise CommandError("expected: nsm [N], nsm explain or nsm save FILE")
    records = session.enclave.events.history("nsm")
    # A request stands in the line of its answer; alone it is worth one while there is none.
    shown = [record for record in records if not isinstance(record.event, NsmRequest) or record is records[-1]]
    return shown_history(shown, words, "No program has talked to the secure module yet.")


@COMMANDS.add("attest", usage="[USER-DATA] [NONCE]")
async def attest(session: Session, words: list[str]) -> Text:
    """Make an attestation document and show it, verified.

    For example: attest; attest 'some user data' hex:0011
    It is made on the secure module itself: no program in the guest takes part, and no fault or catchpoint.
    Documents that the guest got: nsm explain
    """
    if len(words) > 2:
        raise CommandError("expected: attest [USER-DATA] [NONCE]; quote what has spaces")
    user_data, nonce = [*(value_bytes(word) for word in words), None, None][:2]

    def make() -> tuple[bytes, Report]:
        document = session.enclave.nsm.attest(user_data=user_data, nonce=nonce)
        return document, _verified(session, document)

    document, report = await asyncio.to_thread(make)
    return describe_document(document, report)


def _verified(session: Session, document: bytes) -> Report:
    from enclavedbg.nsm.roots import Root
    from enclavedbg.nsm.verify import verify

    module = session.enclave.nsm
    return verify(
        document,
        roots=[Root.of(module.authority.root(), "the development root (not AWS's)")],
        now=datetime.now(UTC),
        expect_pcrs=None if module.debug_mode else session.enclave.measurements.as_mapping(),
        allow_debug=module.debug_mode,
    )


def describe_document(raw: bytes, report: Report) -> Text:
    """An attestation document field by field, and whether it holds."""
    document = report.reading.document()
    rows: list[tuple[str, str | Text]] = [
        ("module id", document.module_id),
        ("time", f"{document.timestamp:%Y-%m-%d %H:%M:%S.%f}"[:-3] + " UTC"),
        ("digest", document.digest),
    ]
    zeros = [f"{index}" for index, value in document.pcrs.items() if not any(value)]
    rows += [(f"PCR{index}", value.hex()) for index, value in document.pcrs.items() if any(value)]
    if zeros:
        rows.append(("zero PCRs", ", ".join(zeros)))
    for name in ("public_key", "user_data", "nonce"):
        value: bytes | None = getattr(document, name)
        rows.append((name.replace("_", " "), "none" if value is None else f"{size(len(value))}: {_excerpt(value)}"))
    rows.append(("chain", f"{len(document.cabundle)} certificates and the leaf"))
    rows.append(("size", size(len(raw))))
    rows += [("not valid", [("bad", f"{failure.check.value}: {failure.reason}")]) for failure in report.failures]
    if report.valid and report.root is not None:
        rows.append(("root", report.root.fingerprint.hex()))
        rows.append(("verified", [("good", f"signature, chain and times hold, under {report.root.name}")]))
    return fields(rows)


def _excerpt(value: bytes) -> str:
    text = value.decode("ascii", "replace")
    return text if text.isprintable() and "\ufffd" not in text and len(text) <= 60 else value[:32].hex()


def _save(document: bytes, path: Path) -> Text:
    try:
        with path.open("xb") as file:
            file.write(document)
    except FileExistsError:
        raise CommandError(f"{path} exists; name a new file, so that nothing is overwritten") from None
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror or error}") from None
    return lines(f"{size(len(document))} in {path}")


def _last_document(session: Session) -> bytes:
    for record in reversed(session.enclave.events.history("nsm.exchange")):
        if isinstance(record.event, NsmExchange) and isinstance(record.event.response, SignedDocument):
            return record.event.response.document
    raise CommandError("no program in the guest got a document yet; `attest` makes one on the module itself")


def _explained(report: Report) -> Text:
    from enclavedbg.nsm.tree import report_lines

    return joined(list(row) for row in report_lines(report))


@COMMANDS.add(
    "fault", usage="[KIND ACTION|off [N]]", completes=f"off|any|{_REQUESTS} error|delay|drop|cut {_ERRORS}|if if|and"
)
async def fault(session: Session, words: list[str]) -> Text:
    """Make the secure module fail, or list faults.

    fault Attestation error InternalError     every request of that kind gets this error
    fault Attestation#2 delay 3s              the second from now is answered three seconds of guest time later
    fault GetRandom drop                      never answered: Linux gives up after two minutes
    fault DescribePCR cut 10 if index == 0    ten bytes of the answer, for this register alone
    fault off 1; fault off                    take one away, or all
    """
    table = session.enclave.nsm.faults
    match words:
        case []:
            rows: list[Text] = [
                [("name", f"{n:3}  "), ("", str(found)), ("dim", f"  {counted(seen, 'request')} like that so far")]
                for n, found, seen in table.listing()
            ]
            return joined(rows) if rows else lines(f"There are no faults; a fault is KIND with {ACTIONS}.")
        case ["off", *numbers]:
            there = [n for n, _, _ in table.listing()]
            wanted = [number(word, "a fault's number") for word in numbers] or there
            if missing := [str(n) for n in wanted if n not in there]:
                raise CommandError(f"there is no fault {', '.join(missing)}; `fault` lists them")
            gone = [(n, table.remove(n)) for n in wanted]
            return lines("\n".join(f"Fault {n} ({found}) is gone" for n, found in gone) or "There are no faults.")
    session.require_alive()
    found = parse_fault(words)
    return lines(f"Fault {table.add(found)}: {found}")


@COMMANDS.add("catch", usage="[nsm KIND]", completes=f"nsm after|before|any|{_REQUESTS} any|if|{_REQUESTS} if|and")
async def catch(session: Session, words: list[str]) -> Text:
    """Stop when the secure module is asked, or list.

    catch nsm Attestation                       before it is answered, right behind the instruction that asked
    catch nsm after ExtendPCR if index == 16    behind that one too, with the answer in the guest's memory
    catch nsm Attestation#3 if nonce == hex:00  the third of those; text, hex:, base64: or none
    catch nsm after any if error != none        whatever is refused
    """
    match words:
        case []:
            rows: list[Text] = [
                [("name", f"{n:3}  "), ("code", str(point))] for n, point in session.enclave.catchpoints.listing()
            ]
            return joined(rows) if rows else lines("There are no catchpoints; for example: catch nsm Attestation")
        case ["nsm", "before" | "after" as when, *rest]:
            after = when == "after"
        case ["nsm", *rest]:
            after = False
        case _:
            raise CommandError(f"there is nothing to catch called {words[0]!r}; expected: catch nsm KIND")
    session.require_alive()
    selector, between = parse_selector(rest, answered=after)
    if between:
        raise CommandError(f"{between[0]!r} follows the request; expected `if` with a condition, or nothing")
    point = Catchpoint(selector, after)
    return lines(f"Catchpoint {session.add_catchpoint(point)}: {point}")
