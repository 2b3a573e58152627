#!/usr/bin/env python3
"""Checks exports of "raftmine audit --export" without any of raftmine's code.

Usage: verify.py FILE...

It prints one JSON object a file, each on one line. Exit code 0: everything holds; 1: something does not, and the file's
object says in "what" the first thing that is wrong, in "line" the line, and in "index" the record, or the last one before
that line when the line has none; 2: a FILE cannot be read, which standard error says.

It uses Python's standard library alone and was written from the documents: the export's lines (package fsm/audit), the
stored entries (entry.proto of raftmine.fsm.v1), the proof of work (package fsm/pow), the rules and the digest of the state
(package fsm), and the words of outcomes (testdata/fsm/v1.outcomes). It decodes the stored bytes itself and recomputes the
hash chain, the Merkle tree, every proof of work and every receipt's digest, who owns each chunk, what each command came to,
and the digest of the last state. From these it writes every line anew and wants the same bytes: nothing in an export may be
changed, "entry", which is for people, no more than "data".

It does not say whether receipts are too bad for the work to have been done: "raftmine audit" does that with statistics.
Entries whose protobuf holds a field twice are refused: raftmine writes none.
"""
import base64
import hashlib
import json
import re
import struct
import sys

MAX_LINE, MAX_ENTRY, MAX_COMMANDS, MAX_LISTED = 64 << 20, 4 << 20, 1 << 16, 1 << 16
MAX_CHUNK, MAX_CHUNKS, MAX_STRIKES = 1_000_000_000, 1 << 36, 3
MAX_UINT32, MAX_UINT64 = (1 << 32) - 1, (1 << 64) - 1


class Broken(Exception):
    """What does not hold. index is None when it is not about a record."""

    def __init__(self, what, index=None):
        super().__init__(what)
        self.index = index


def is_number(value):
    return type(value) is int and 0 <= value <= MAX_UINT64


# Protocol buffers, as far as entries need them.

def varint(data, at):
    value = shift = 0
    while True:
        if at == len(data):
            raise ValueError("a number is cut off")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if value > MAX_UINT64 or shift > 63:
            raise ValueError("a number has more than 64 bits")
        if byte < 0x80:
            return value, at
        shift += 7


def fields(data):
    """Yields (number, value) of a message; value is an int or bytes."""
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        if key & 7 == 0:
            value, at = varint(data, at)
        elif key & 7 == 2:
            size, at = varint(data, at)
            if at + size > len(data):
                raise ValueError("a field is cut off")
            value, at = data[at:at + size], at + size
        else:
            raise ValueError("a field has wire type %d" % (key & 7))
        yield key >> 3, value


WORDS = {"reason": ["silent", "left", "restarted", "refused"], "verdict": ["success", "wrong", "stale", "unknown"]}
MINER = re.compile(rb"[A-Za-z0-9._-]{1,64}")
NUMBERS = ("int", "int32", "bool", "reason", "verdict")  # kinds that are stored as one varint
NONE = {"int": 0, "int32": 0, "bool": False, "text": "", "host": {"machine_id": "", "boot_id": ""}}  # of what is not stored


def value_of(kind, limit, stored):
    """Reads one value that is no list."""
    if isinstance(stored, int) != (kind in NUMBERS):
        raise ValueError("it is stored as another type")
    if kind == "bool":
        return stored != 0
    if kind in WORDS:
        if not 1 <= stored <= len(WORDS[kind]):
            raise ValueError("%d is not known" % stored)
        return WORDS[kind][stored - 1]
    if kind == "int32" and stored > limit:
        raise ValueError("%d, want at most %d" % (stored, limit))
    if kind == "text" and len(stored) > limit:
        raise ValueError("%d bytes, want at most %d" % (len(stored), limit))
    if kind == "bytes" and len(stored) != limit:
        raise ValueError("%d bytes, want %d" % (len(stored), limit))
    if kind == "miner" and not MINER.fullmatch(stored):
        raise ValueError("it is no name of a miner")
    if kind in ("text", "miner"):
        return stored.decode()
    if kind == "host":
        return message(fields(stored), "machine_id text 256, boot_id text 256")
    if kind == "range":
        return message(fields(stored), "first int, last int")
    return stored


def message(stored_fields, schema):
    """Reads a message into a dict, in the order of the schema, which names the fields 1, 2, 3 ... with kinds and limits."""
    names, out = [field.split() for field in schema.split(", ")], {}
    for number, stored in stored_fields:
        if not 1 <= number <= len(names):
            raise ValueError("field %d is not known" % number)
        name, kind, limit = (names[number - 1] + ["0"])[:3]
        try:
            if kind == "ranges":
                out.setdefault(name, []).append(value_of("range", 0, stored))
            elif kind == "ints":
                out.setdefault(name, []).extend([stored] if isinstance(stored, int) else varints(stored))
            elif name in out:
                raise ValueError("it is stored twice")
            else:
                out[name] = value_of(kind, int(limit), stored)
        except ValueError as error:
            raise ValueError("%s: %s" % (name, error))
    for name, kind, *_ in names:
        if kind in ("ints", "ranges"):
            if len(out.setdefault(name, [])) > MAX_LISTED:
                raise ValueError("%s: more than %d" % (name, MAX_LISTED))
        elif name not in out and kind not in NONE:
            raise ValueError("%s is missing" % name)
    return {name: out.get(name, NONE.get(kind)) for name, kind, *_ in names}


def varints(data):
    at, out = 0, []
    while at < len(data):
        value, at = varint(data, at)
        out.append(value)
    return out


PLACE = "address text 256, data_dir text 4096, host host"
COMMANDS = [
    ("open_cluster", "cluster_id text 64"),
    ("add_server", "request_id bytes 16, " + PLACE),
    ("update_server", "server_id int, " + PLACE),
    ("readmit_server", "server_id int"),
    ("remove_server", "server_id int, reason text 200"),
    ("server_up", "server_id int"),
    ("server_down", "server_id int, reason text 200"),
    ("take_office", "server_id int"),
    ("open_job", "height int, previous bytes 32, bits int32 1073741824, timestamp int, nonces range, chunk_size int"),
    ("grant_work", "job_id int, miner miner, instance bytes 16, request_id int, chunks int"),
    ("finish", "job_id int, grant_id int, miner miner, timestamp int, nonces range, receipt int"),
    ("solve", "job_id int, grant_id int, miner miner, timestamp int, nonce int"),
    ("release", "miner miner, grant_ids ints, reason reason, forget bool"),
    ("strike", "miner miner, reason text 200"),
    ("roll", "job_id int, round int32 4294967295, timestamp int"),
    ("submitting", "job_id int"),
    ("submitted", "job_id int, verdict verdict, detail text 200"),
    ("close_job", "job_id int, reason text 200"),
    ("revoke", "job_id int, round int32 4294967295, miner miner, ranges ranges, reason text 200"),
    ("cluster_stop", "reason text 200"),
    ("recover", "recovery_id bytes 16, survivor int, index int, term int, head bytes 32"),
]


def decode(data):
    """Returns a stored entry as a dict, and its commands as [(name, dict)]."""
    if not data or data[0] != 1:
        raise ValueError("it is no entry of version 1")
    if len(data) > MAX_ENTRY:
        raise ValueError("%d bytes, want at most %d" % (len(data), MAX_ENTRY))
    stored, commands = list(fields(data[1:])), []
    entry = message([(number, value) for number, value in stored if number != 4], "leader int, unix_ms int, version text 128")
    for number, value in stored:
        if number != 4:
            continue
        if len(commands) == MAX_COMMANDS:
            raise ValueError("more than %d commands" % MAX_COMMANDS)
        one = list(fields(value)) if isinstance(value, bytes) else []
        if len(one) != 1 or not 1 <= one[0][0] <= len(COMMANDS) or not isinstance(one[0][1], bytes):
            raise ValueError("command %d is none that is known" % len(commands))
        name, schema = COMMANDS[one[0][0] - 1]
        try:
            commands.append((name, message(fields(one[0][1]), schema)))
        except ValueError as error:
            raise ValueError("command %d, %s: %s" % (len(commands), name, error))
    return entry, commands


# JSON as an export writes it.

ESCAPES = str.maketrans({c: "\\u%04x" % ord(c) for c in "<>&\u2028\u2029"})


def text_of(value):
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, bytes):
        return '"%s"' % value.hex()
    if isinstance(value, list):
        return "[%s]" % ",".join(text_of(element) for element in value)
    if isinstance(value, dict):
        return "{%s}" % members_of(value.items())
    return json.dumps(value, ensure_ascii=False).translate(ESCAPES)


def members_of(pairs):
    return ",".join('"%s":%s' % (name, text_of(value)) for name, value in pairs)


def readable(entry, commands, outcomes):
    """The member "entry" of a record."""
    told = []
    for (name, command), (code, detail, made) in zip(commands, outcomes):
        pairs = [("command", name)] + list(command.items()) + [("outcome", code)]
        pairs += [("detail", detail)] * (detail != "") + list(made.items())
        told.append("{%s}" % members_of(pairs))
    return '{%s,"commands":[%s]}' % (members_of(entry.items()), ",".join(told))


# Proof of work.

def digest(previous, nonce, timestamp):
    text = previous.hex() + str(nonce) + str(timestamp)
    return hashlib.sha256(hashlib.sha256(text.encode("ascii")).digest()).digest()


def zero_bits(d):
    return 256 - int.from_bytes(d, "big").bit_length()


# RFC 6962.

class Tree:
    def __init__(self):
        self.peaks = []  # (size, hash)

    def add(self, leaf):
        size, h = 1, hashlib.sha256(b"\x00" + leaf).digest()
        while self.peaks and self.peaks[-1][0] == size:
            _, left = self.peaks.pop()
            size, h = 2 * size, hashlib.sha256(b"\x01" + left + h).digest()
        self.peaks.append((size, h))

    def root(self):
        if not self.peaks:
            return hashlib.sha256(b"").digest()
        h = self.peaks[-1][1]
        for _, left in reversed(self.peaks[:-1]):
            h = hashlib.sha256(b"\x01" + left + h).digest()
        return h


# The state.

PENDING, FINISHED = 0, -1  # a chunk's other owners are grant ids


class Partition:
    """Who owns each chunk of a round: [first chunk, chunk after the last, owner] of all of them, neighbours merged."""

    def __init__(self, nonces, chunk_size):
        self.first, self.last, self.size = nonces["first"], nonces["last"], chunk_size
        self.total = (self.last - self.first) // chunk_size + 1
        self.restart()

    def restart(self):
        self.stretches, self.touched = [[0, self.total, PENDING]], 0  # touched: chunks below it were granted once

    def chunks(self, nonces):
        """The chunks that nonces are exactly, else None."""
        first, last = nonces["first"], nonces["last"]
        if not self.first <= first <= last <= self.last or (first - self.first) % self.size:
            return None
        if last != self.last and (last + 1 - self.first) % self.size:
            return None
        return (first - self.first) // self.size, (last - self.first) // self.size + 1

    def nonces(self, first, end):
        return {"first": self.first + first * self.size, "last": min(self.first + end * self.size - 1, self.last)}

    def owners(self, first, end):
        return {owner for a, b, owner in self.stretches if a < end and first < b}

    def count(self, *owners, below=None):
        below = self.total if below is None else below
        return sum(min(b, below) - a for a, b, owner in self.stretches if a < below and owner in owners)

    def give(self, first, end, to):
        merged = []
        for a, b, owner in self.stretches:
            for x, y, o in ((a, min(b, first), owner), (max(a, first), min(b, end), to), (max(a, end), b, owner)):
                if x < y and merged and merged[-1][2] == o:
                    merged[-1][1] = y
                elif x < y:
                    merged.append([x, y, o])
        self.stretches = merged


class Wrong(Exception):
    """A command that came to nothing: (code, detail)."""


def want(condition, code, detail, *args):
    if not condition:
        raise Wrong(code, detail % args if args else detail)


def span(nonces):
    return "%d-%d" % (nonces["first"], nonces["last"])


def inside(nonces, nonce):
    return nonces["first"] <= nonce <= nonces["last"]


class State:
    """What the records come to. Each command is a method: it changes the state and returns what it made, or raises Wrong."""

    def __init__(self):
        self.cluster_id, self.stopped, self.recovery = "", False, None
        self.office = {"server": 0, "term": 0, "index": 0}
        self.records = self.index = self.term = self.unix_ms = 0
        self.chain = self.block_chain = bytes(32)
        self.leader, self.led = 0, set()  # of the current term; who took office ever
        self.servers, self.job, self.part, self.grants, self.last_grant = [], None, None, {}, 0
        self.miners, self.forgotten = {}, self.new_miner()
        self.blocks, self.accepted, self.ranges, self.nonces = [], 0, 0, 0

    def apply(self, name, command):
        """Returns (code, detail, what was made)."""
        try:
            return "done", "", getattr(self, name)(command) or {}
        except Wrong as wrong:
            code, detail = wrong.args
            if isinstance(detail, dict):
                return code, "", detail
            return code, detail, {}

    # Servers.

    def open_cluster(self, c):
        want(self.cluster_id != c["cluster_id"] or not self.cluster_id, "duplicate", "")
        want(not self.cluster_id, "refused", "the cluster is %s already", self.cluster_id)
        want(c["cluster_id"], "wrong", "the cluster id is empty")
        self.cluster_id = c["cluster_id"]

    def take_office(self, c):
        o = self.office
        want(c["server_id"], "wrong", "server 0 cannot lead")
        want((self.term, c["server_id"]) != (o["term"], o["server"]), "duplicate", "")
        want(self.term > o["term"], "refused", "server %d is in office since term %d", o["server"], o["term"])
        self.office, self.stopped = {"server": c["server_id"], "term": self.term, "index": self.index}, False
        self.led.add(c["server_id"])

    def cluster_stop(self, c):
        want(not self.stopped, "duplicate", "")
        self.stopped = True

    def recover(self, c):
        want(any(c["recovery_id"]), "wrong", "the recovery id is zero")
        want(c["survivor"], "wrong", "server 0 cannot survive")
        want(c["index"] < self.index and c["term"] <= self.term, "wrong",
             "recovered entry %d of term %d is not before entry %d of term %d", c["index"], c["term"], self.index, self.term)
        want(not self.recovery or self.recovery["recovery_id"] != c["recovery_id"], "duplicate", "")
        self.recovery = c

    def check_place(self, c):
        want(c["address"], "wrong", "the server's address is empty")
        want(c["data_dir"], "wrong", "the server's data directory is empty")

    def server(self, c):
        want(1 <= c["server_id"] <= len(self.servers), "refused", "there is no server %d", c["server_id"])
        return self.servers[c["server_id"] - 1]

    def add_server(self, c):
        want(any(c["request_id"]), "wrong", "the request id is zero")
        self.check_place(c)
        for server in self.servers:
            want(server["request_id"] != c["request_id"], "duplicate", {"new_server_id": server["id"]})
        self.servers.append(dict(c, id=len(self.servers) + 1, member=True, up=False, since=self.index))
        return {"new_server_id": len(self.servers)}

    def update_server(self, c):
        self.check_place(c)
        server, place = self.server(c), {name: c[name] for name in ("address", "data_dir", "host")}
        want(any(server[name] != value for name, value in place.items()), "duplicate", "")
        server.update(place)

    def readmit_server(self, c):
        want(not self.server(c)["member"], "duplicate", "")
        self.server(c).update(member=True, up=False, since=self.index)

    def remove_server(self, c):
        want(self.server(c)["member"], "duplicate", "")
        self.server(c).update(member=False, up=False, since=self.index)

    def server_up(self, c):
        want(self.server(c)["member"], "refused", "server %d is no member", c["server_id"])
        want(not self.server(c)["up"], "duplicate", "")
        self.server(c).update(up=True, since=self.index)

    def server_down(self, c):
        want(self.server(c)["up"], "duplicate", "")
        self.server(c).update(up=False, since=self.index)

    # Jobs.

    def job_is(self, c):
        want(self.job and 0 < c["job_id"] <= self.job["id"], "wrong", "there was no job %d yet", c["job_id"])
        want(c["job_id"] == self.job["id"], "stale", "job %d is over, the current one is job %d", c["job_id"], self.job["id"])

    def job_open(self, c):
        self.job_is(c)
        want(self.job["phase"] == "open", "stale", "job %d is %s", c["job_id"], self.job["phase"])

    def round_is(self, c):
        now = self.job["timestamp"]
        want(c["timestamp"] <= now, "wrong", "timestamp %d was never searched with, the current one is %d", c["timestamp"], now)
        want(c["timestamp"] == now, "stale", "timestamp %d is over, the current one is %d", c["timestamp"], now)

    def open_job(self, c):
        def check(condition, detail, *args):
            want(condition, "wrong", "open job: " + detail, *args)
        check(c["height"], "height 0")
        check(c["timestamp"], "timestamp 0")
        check(c["bits"] <= 256, "%d leading zero bits, want 0 to 256", c["bits"])
        check(c["nonces"]["first"], "nonce range %s starts at 0, want 1 or more", span(c["nonces"]))
        check(c["nonces"]["first"] <= c["nonces"]["last"], "nonce range %s is empty", span(c["nonces"]))
        check(1 <= c["chunk_size"] <= MAX_CHUNK, "chunks of %d nonces, want 1 to %d", c["chunk_size"], MAX_CHUNK)
        part, job = Partition(c["nonces"], c["chunk_size"]), self.job
        check(part.total <= MAX_CHUNKS, "%d chunks, want at most %d: make them larger", part.total, MAX_CHUNKS)
        if job:
            same = job["round"] == 0 and all(job[name] == c[name] for name in c)
            want(not same or job["phase"] != "open", "duplicate", {"new_job_id": job["id"]})
            want(not same, "stale", "the same job was opened as job %d and is %s", job["id"], job["phase"])
            want(job["phase"] == "closed", "refused", "job %d is %s", job["id"], job["phase"])
        want(c["height"] > self.accepted, "refused", "height %d is not above the accepted height %d", c["height"], self.accepted)
        self.job = dict(c, id=job["id"] + 1 if job else 1, phase="open", round=0, solution=None, opened=self.index, at=self.unix_ms)
        self.part, self.grants = part, {}
        return {"new_job_id": self.job["id"]}

    def roll(self, c):
        self.job_is(c)
        job, to = self.job, c["round"]
        want(to, "wrong", "round 0 is not rolled to")
        want(job["phase"] == "open", "stale", "job %d is %s", job["id"], job["phase"])
        want(to != job["round"], "duplicate", "")
        want(to > job["round"], "stale", "round %d is over, the current one is round %d", to, job["round"])
        want(to == job["round"] + 1, "refused", "round %d does not follow round %d", to, job["round"])
        want(c["timestamp"] > job["timestamp"], "refused", "timestamp %d is not after %d", c["timestamp"], job["timestamp"])
        left = self.part.total - self.part.count(FINISHED)
        want(left == 0, "refused", "%d chunks of round %d are not finished", left, job["round"])
        job["round"], job["timestamp"] = to, c["timestamp"]
        self.part.restart()

    def submitting(self, c):
        self.job_is(c)
        want(self.job["phase"] != "open", "refused", "job %d has no solution", c["job_id"])
        want(self.job["phase"] != "closed", "stale", "job %d is closed", c["job_id"])
        self.job["phase"] = "submitting"
        self.job["solution"]["attempts"] = min(self.job["solution"]["attempts"] + 1, MAX_UINT32)

    def submitted(self, c):
        for block in self.blocks:
            if block["job"] == c["job_id"]:
                want(block["verdict"] != c["verdict"], "duplicate", "")
                want(False, "stale", "job %d is settled: %s", c["job_id"], block["verdict"])
        self.job_is(c)
        job = self.job
        want(job["phase"] == "submitting", "refused", "job %d is %s, not submitting", job["id"], job["phase"])
        want(c["verdict"] != "success" or job["height"] > self.accepted, "refused",
             "height %d is not above the accepted height %d", job["height"], self.accepted)
        job["phase"], s = "closed", job["solution"]
        self.blocks.append({"job": job["id"], "height": job["height"], "hash": s["hash"].hex(), "nonce": s["nonce"],
                            "miner": s["miner"], "verdict": c["verdict"], **s["below"]})
        if c["verdict"] == "success":
            self.accepted = job["height"]
        e = Encoder("raftmine block 1").raw(self.block_chain).number(len(self.blocks), job["id"], job["height"])
        e.raw(s["hash"]).raw(job["previous"]).number(s["nonce"], job["timestamp"], job["bits"]).text(s["miner"])
        e.number(WORDS["verdict"].index(c["verdict"]) + 1).text(c["detail"]).number(self.index, self.unix_ms)
        self.block_chain = e.sum()

    def close_job(self, c):
        want(not self.job or not 0 < c["job_id"] < self.job["id"], "duplicate", "")
        self.job_is(c)
        want(self.job["phase"] != "closed", "duplicate", "")
        want(self.job["phase"] == "open", "refused", "job %d is %s and must be settled", c["job_id"], self.job["phase"])
        self.job["phase"] = "closed"

    # Work.

    @staticmethod
    def new_miner():
        return {"chunks": 0, "nonces": 0, "solutions": 0, "strikes": 0, "request": 0, "grant": 0}

    def miner(self, c):
        return self.miners.setdefault(c["miner"], self.new_miner())

    def grant_of(self, grant_id, miner):
        """The grant that an answer is for; None when it was issued and is gone."""
        want(0 < grant_id <= self.last_grant, "wrong", "there was no grant %d yet", grant_id)
        grant = self.grants.get(grant_id)
        want(not grant or grant["miner"] == miner, "wrong", "grant %d is not miner %s's", grant_id, miner)
        return grant

    def grant_work(self, c):
        want(c["request_id"], "wrong", "request id 0")
        want(c["chunks"], "wrong", "a grant of 0 chunks")
        self.job_open(c)
        m, request = self.miners.get(c["miner"], self.new_miner()), c["request_id"]
        want(m["strikes"] < MAX_STRIKES, "refused", "miner %s has %d strikes", c["miner"], m["strikes"])
        want(request >= m["request"], "refused", "request %d of miner %s comes after request %d", request, c["miner"], m["request"])
        if request == m["request"]:
            grant = self.grants.get(m["grant"])
            want(not grant, "duplicate", {"grant": {"id": m["grant"], "nonces": grant and grant["nonces"]}})
            want(False, "refused", "request %d of miner %s was answered with grant %d, which is gone", request, c["miner"], m["grant"])
        first, end = next(((a, b) for a, b, owner in self.part.stretches if owner == PENDING), (0, 0))
        want(end, "no work", "nothing of job %d is pending", c["job_id"])
        end = min(end, first + c["chunks"])
        self.last_grant += 1
        self.part.give(first, end, self.last_grant)
        self.part.touched = max(self.part.touched, end)
        self.grants[self.last_grant] = {"miner": c["miner"], "instance": c["instance"], "nonces": self.part.nonces(first, end),
                                        "index": self.index}
        self.miner(c).update(request=request, grant=self.last_grant)
        return {"grant": {"id": self.last_grant, "nonces": self.part.nonces(first, end)}}

    def finish(self, c):
        grant = self.grant_of(c["grant_id"], c["miner"])
        self.job_open(c)
        self.round_is(c)
        nonces, chunks = c["nonces"], self.part.chunks(c["nonces"])
        want(chunks, "wrong", "%s is not whole chunks of job %d", span(nonces), c["job_id"])
        want(inside(nonces, c["receipt"]), "wrong", "receipt %d lies outside %s", c["receipt"], span(nonces))
        finished = self.part.owners(*chunks) == {FINISHED}
        want(grant or not finished, "duplicate", "")
        want(grant, "released", "grant %d was taken back", c["grant_id"])
        left = grant["nonces"]
        want(nonces["last"] >= left["first"] or not finished, "duplicate", "")
        want(nonces["first"] == left["first"] and nonces["last"] <= left["last"], "wrong",
             "%s is not the head of %s, which is left of grant %d", span(nonces), span(left), c["grant_id"])
        best = digest(self.job["previous"], c["receipt"], self.job["timestamp"])
        want(zero_bits(best) < self.job["bits"], "wrong", "receipt %d is a solution", c["receipt"])
        self.part.give(*chunks, FINISHED)
        if nonces["last"] == left["last"]:
            del self.grants[c["grant_id"]]
        else:
            grant["nonces"] = {"first": nonces["last"] + 1, "last": left["last"]}
        size, m = nonces["last"] - nonces["first"] + 1, self.miner(c)
        m["chunks"] = min(m["chunks"] + chunks[1] - chunks[0], MAX_UINT64)
        m["nonces"] = min(m["nonces"] + size, MAX_UINT64)
        self.ranges += 1
        self.nonces += size

    def solve(self, c):
        grant = self.grant_of(c["grant_id"], c["miner"])
        self.job_is(c)
        job, s, nonce = self.job, self.job["solution"], c["nonce"]
        same = s and c["timestamp"] == job["timestamp"] and all(s[name] == c[name] for name in ("grant_id", "miner", "nonce"))
        want(not same, "duplicate", "")
        self.job_open(c)
        self.round_is(c)
        want(inside(job["nonces"], nonce), "wrong", "nonce %d lies outside %s", nonce, span(job["nonces"]))
        proof = digest(job["previous"], nonce, job["timestamp"])
        want(zero_bits(proof) >= job["bits"], "wrong", "nonce %d gives %d leading zero bits, want %d", nonce, zero_bits(proof), job["bits"])
        want(grant, "released", "grant %d was taken back", c["grant_id"])
        want(inside(grant["nonces"], nonce), "wrong", "nonce %d lies outside %s, which is left of grant %d", nonce,
             span(grant["nonces"]), c["grant_id"])
        chunk = (nonce - job["nonces"]["first"]) // job["chunk_size"]
        finished, pending = self.part.count(FINISHED, below=chunk), self.part.count(PENDING, below=chunk)
        gaps = max(chunk - self.part.touched, 0)
        if gaps:
            raise Broken("%d chunks below the solution were never granted" % gaps)
        job["phase"], job["solution"] = "solved", {
            "grant_id": c["grant_id"], "miner": c["miner"], "nonce": nonce, "hash": proof, "index": self.index, "attempts": 0,
            "below": {"finished": finished, "returned": pending - gaps, "gaps": gaps, "interrupted": chunk - finished - pending}}
        self.miner(c)["solutions"] += 1

    def release(self, c):
        for grant_id in c["grant_ids"]:
            self.grant_of(grant_id, c["miner"])
        is_open = self.job is not None and self.job["phase"] == "open"
        held, changed = [g for g, grant in self.grants.items() if grant["miner"] == c["miner"]], False
        for grant_id in held if is_open else []:
            if not c["grant_ids"] or c["forget"] or grant_id in c["grant_ids"]:
                self.part.give(*self.part.chunks(self.grants.pop(grant_id)["nonces"]), PENDING)
                changed = True
        if c["forget"] and c["miner"] in self.miners:
            gone, sums = self.miners.pop(c["miner"]), self.forgotten
            for name, most in (("chunks", MAX_UINT64), ("nonces", MAX_UINT64), ("solutions", MAX_UINT64), ("strikes", MAX_UINT32)):
                sums[name] = min(sums[name] + gone[name], most)
            changed = True
        want(changed or not held or is_open, "stale", "job %d is %s and keeps its partition", *self.phase())
        want(changed, "duplicate", "")

    def phase(self):
        return (self.job["id"], self.job["phase"]) if self.job else (0, "")

    def strike(self, c):
        m = self.miner(c)
        m["strikes"] = min(m["strikes"] + 1, MAX_UINT32)

    def revoke(self, c):
        want(c["ranges"], "wrong", "no ranges")
        self.job_open(c)
        now = self.job["round"]
        want(c["round"] <= now, "wrong", "there was no round %d yet", c["round"])
        want(c["round"] == now, "stale", "round %d is over, the current one is round %d", c["round"], now)
        for nonces in c["ranges"]:
            want(self.part.chunks(nonces), "wrong", "%s is not whole chunks of job %d", span(nonces), c["job_id"])
        runs = sorted((self.part.chunks(nonces) for nonces in c["ranges"]), key=lambda run: run[0])
        for before, run in zip(runs, runs[1:]):
            want(before[1] <= run[0], "wrong", "%s is listed twice", span(self.part.nonces(*run)))
        owners = [self.part.owners(*run) for run in runs]
        want(any(o != {PENDING} for o in owners), "duplicate", "")
        for run, o in reversed(list(zip(runs, owners))):
            want(o in ({PENDING}, {FINISHED}), "refused", "%s is not finished", span(self.part.nonces(*run)))
        want({PENDING} not in owners, "refused", "some of the chunks are pending")
        m = self.miners.get(c["miner"], self.forgotten)
        for run in runs:
            nonces = self.part.nonces(*run)
            self.part.give(*run, PENDING)
            m["chunks"] = max(m["chunks"] - (run[1] - run[0]), 0)
            m["nonces"] = max(m["nonces"] - (nonces["last"] - nonces["first"] + 1), 0)

    # The digest, as package fsm describes it.

    def digest(self):
        e = Encoder("raftmine state 1").text(self.cluster_id).flag(self.stopped)
        e.number(*self.office.values()).number(self.records, self.index, self.term).raw(self.chain).flag(self.recovery)
        if self.recovery:
            r = self.recovery
            e.raw(r["recovery_id"]).number(r["survivor"], r["index"], r["term"]).raw(r["head"])
        e.number(len(self.servers))
        for s in self.servers:
            e.number(s["id"]).raw(s["request_id"]).text(s["address"]).text(s["data_dir"]).text(s["host"]["machine_id"])
            e.text(s["host"]["boot_id"]).flag(s["member"]).flag(s["up"]).number(s["since"])
        e.flag(self.job)
        cursor, returned = 0, []
        if self.job:
            j, s = self.job, self.job["solution"]
            e.number(j["id"], j["height"]).raw(j["previous"]).number(j["bits"], j["timestamp"], j["round"], j["nonces"]["first"],
                                                                     j["nonces"]["last"], j["chunk_size"])
            e.number(["open", "solved", "submitting", "closed"].index(j["phase"]) + 1).flag(s)
            if s:
                e.number(s["grant_id"]).text(s["miner"]).number(s["nonce"]).raw(s["hash"]).number(s["index"], s["attempts"])
            e.number(j["opened"], j["at"])
            cursor = self.part.total
            returned = [(a, b) for a, b, owner in self.part.stretches if owner == PENDING]
            if returned and returned[-1][1] == cursor:
                cursor = returned.pop()[0]
        e.number(cursor, len(returned))
        for run in returned:
            e.number(*run)
        e.number(self.last_grant, len(self.grants))
        for grant_id, g in sorted(self.grants.items()):
            e.number(grant_id, self.job["id"]).text(g["miner"]).raw(g["instance"]).number(*g["nonces"].values()).number(g["index"])
        e.number(len(self.miners))
        for name, m in sorted(self.miners.items()):
            e.text(name).number(*m.values())
        return e.text("").number(*self.forgotten.values()).number(len(self.blocks)).raw(self.block_chain).sum()


class Encoder:
    """The canonical encoding of a state."""

    def __init__(self, domain):
        self.hash = hashlib.sha256()
        self.text(domain)

    def raw(self, data):
        self.hash.update(data)
        return self

    def number(self, *numbers):
        return self.raw(b"".join(struct.pack(">Q", number) for number in numbers))

    def text(self, text):
        return self.number(len(text.encode())).raw(text.encode())

    def flag(self, value):
        return self.raw(b"\x01" if value else b"\x00")

    def sum(self):
        return self.hash.digest()


# The export.

class Members(list):
    """A JSON object as pairs: a name may stand in it twice."""


RECORD = '{"index":%d,"term":%d,"data":"%s","chain":"%s","entry":'
END = '{"end":{"records":%d,"index":%d,"term":%d,"chain":"%s","tree":"%s","state":"%s"}}'
TEXT = re.compile(rb'"(?:[^"\\]|\\.)*"')
HEADER = b'{"format":"raftmine history","version":1}'


def no_number(text):
    raise ValueError("%s is no number" % text)


def parse(line):
    """Reads a line, which is one object without spaces, whose members are named once each."""
    try:
        pairs = json.loads(line.decode(), object_pairs_hook=Members, parse_constant=no_number)
    except RecursionError:
        raise Broken("it is no JSON: it is nested too deeply")
    except ValueError as error:
        raise Broken("it is no JSON: %s" % error)
    if not isinstance(pairs, Members):
        raise Broken("it is no JSON object")
    out = dict(pairs)
    for name in out:
        if sum(name == other for other, _ in pairs) > 1:
            raise Broken("the member %s stands in it twice" % json.dumps(name))
    if re.search(rb"\s", TEXT.sub(b"", line)):
        raise Broken("it has white space between its members, or another end than a line feed")
    return out


def read_record(line, state, tree):
    r = parse(line)
    if list(r) != ["index", "term", "data", "chain", "entry"]:
        raise Broken("its members are %s, want index, term, data, chain, entry" % json.dumps(list(r))[1:200])
    if not is_number(r["index"]) or not is_number(r["term"]):
        raise Broken("index and term are not numbers of 64 bits")
    try:
        data = base64.b64decode(r["data"].encode("ascii"), validate=True)
    except (AttributeError, ValueError) as error:
        raise Broken("data: %s" % error)
    index, term = r["index"], r["term"]
    begins = (RECORD % (index, term, base64.b64encode(data).decode(), r["chain"])).encode("utf-8", "replace")
    if not re.fullmatch("[0-9a-f]{64}", str(r["chain"])) or not line.startswith(begins):
        raise Broken("it is not written as an export writes it")
    leaf = struct.pack(">QQQ", index, term, len(data)) + data
    chain = hashlib.sha256(state.chain + leaf).hexdigest()
    if chain != r["chain"]:
        raise Broken("its chain hash is %s, but it hashes to %s after record %d" % (r["chain"], chain, state.index), index)
    if index <= state.index or term < state.term or term == 0:
        raise Broken("entry %d of term %d is out of order after entry %d of term %d" % (index, term, state.index, state.term), index)
    try:
        entry, commands = decode(data)
    except ValueError as error:
        raise Broken("data: %s" % error, index)
    tree.add(leaf)
    new_term = term != state.term
    if new_term:
        state.leader = entry["leader"]
    state.chain, state.records, state.index, state.term = bytes.fromhex(chain), state.records + 1, index, term
    state.unix_ms = entry["unix_ms"]
    if entry["leader"] != state.leader:
        raise Broken("server %d proposed it, but server %d leads in term %d" % (entry["leader"], state.leader, term))
    if state.records == 1 and (not commands or commands[0][0] != "open_cluster" or not commands[0][1]["cluster_id"]):
        raise Broken("the first record does not open the cluster: the one that did is missing")
    outcomes = []
    for name, command in commands:
        outcomes.append(state.apply(name, command))
        if name == "take_office" and outcomes[-1][0] == "done" and command["server_id"] != state.leader:
            raise Broken("server %d says that server %d takes office" % (state.leader, command["server_id"]))
    # One record may come before: what a leader was about to log when it lost its office and won again at once.
    if state.office["term"] != term and not (new_term and state.leader in state.led):
        raise Broken("server %d proposed it before it took office in term %d" % (state.leader, term))
    want_entry, said = readable(entry, commands, outcomes), line[len(begins):-1].decode()
    if line[-1:] != b"}" or said != want_entry:
        at = next((i for i, (x, y) in enumerate(zip(said, want_entry)) if x != y), min(len(said), len(want_entry)))
        at = max(at - 40, 0)
        raise Broken("entry says ...%s, its data holds ...%s" % (said[at:at + 100], want_entry[at:at + 100]))


def read(lines, state, tree):
    """Reads all lines and returns what the end says."""
    header = next(lines, None)
    if header is None:
        raise Broken("it is empty")
    if header != HEADER:
        raise Broken("it is no header of a raftmine history, version 1")
    for line in lines:
        if not line.startswith(b'{"end":'):
            read_record(line, state, tree)
            continue
        end = {"chain": state.chain.hex(), "tree": tree.root().hex(), "state": state.digest().hex()}
        own = END % (state.records, state.index, state.term, end["chain"], end["tree"], end["state"])
        if line != own.encode():
            parse(line)
            raise Broken("it says of the end %s, the records come to %s" % (line.decode()[:500], own))
        if next(lines, None) is not None:
            raise Broken("there is more after the end")
        if state.records == 0:
            raise Broken("the history is empty")
        return end
    raise Broken("the end is missing")


def verify(file):
    """Reads an export and returns the verdict."""
    state, number = State(), 0

    def lines():
        nonlocal number
        while True:
            number += 1
            line = file.readline(MAX_LINE + 1)
            if not line:
                return
            if len(line) > MAX_LINE:
                raise Broken("it is longer than %d bytes" % MAX_LINE)
            if not line.endswith(b"\n"):
                raise Broken("it is cut off")
            yield line[:-1]

    try:
        end = read(lines(), state, Tree())
    except Broken as broken:
        index = state.index if broken.index is None else broken.index
        return {"holds": False, "line": number, "index": index, "what": str(broken)}
    return {"holds": True, "records": state.records, "chain": end["chain"], "tree": end["tree"], "state": end["state"],
            "ranges": state.ranges, "nonces": state.nonces, "blocks": state.blocks}


def main():
    if len(sys.argv) < 2:
        sys.stderr.write("usage: verify.py FILE...\n")
        sys.exit(2)
    code = 0
    for path in sys.argv[1:]:
        try:
            with open(path, "rb") as file:
                verdict = verify(file)
        except OSError as error:
            sys.stderr.write("verify.py: %s\n" % error)
            sys.exit(2)
        print(json.dumps(dict({"file": path}, **verdict)))
        code = code if verdict["holds"] else 1
    sys.exit(code)


if __name__ == "__main__":
    main()
