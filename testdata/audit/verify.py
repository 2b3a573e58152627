#!/usr/bin/env python3
"""Checks an export of "raftmine audit --export" without any of raftmine's code.

Usage: verify.py FILE     prints one JSON object; exit code 0: everything holds, 1: it does not.

It uses Python's standard library alone and was written from the documents: the export's lines (package fsm/audit), the
stored entries (entry.proto of raftmine.fsm.v1), the proof of work (package fsm/pow). It recomputes the hash chain, the
Merkle tree, every proof of work and every receipt's digest, and who owns each chunk, one owner a chunk, as naively as
can be.
"""
import base64
import hashlib
import json
import struct
import sys

PENDING, FINISHED = 0, -1  # a chunk's other owners are grant ids
MAX_STRIKES = 3


class Broken(Exception):
    def __init__(self, index, what):
        super().__init__(what)
        self.index, self.what = index, what


# Protocol buffers, as far as entries need them.

def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
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
                raise ValueError("field is cut off")
            value, at = data[at:at + size], at + size
        else:
            raise ValueError("wire type %d" % (key & 7))
        yield key >> 3, value


def message(data, names):
    """Reads a message into a dict; names maps field numbers to (name, kind)."""
    out = {name: {"int": 0, "text": "", "bytes": b"", "ranges": [], "ints": [], "range": None, "skip": None}[kind]
           for name, kind in names.values()}
    for number, value in fields(data):
        name, kind = names[number]
        if kind == "text":
            out[name] = value.decode()
        elif kind == "range":
            out[name] = read_range(value)
        elif kind == "ranges":
            out[name] = out[name] + [read_range(value)]
        elif kind == "ints":
            if isinstance(value, int):
                out[name] = out[name] + [value]
            else:
                at, ints = 0, []
                while at < len(value):
                    one, at = varint(value, at)
                    ints.append(one)
                out[name] = out[name] + ints
        else:
            out[name] = value
    return out


def read_range(data):
    r = message(data, {1: ("first", "int"), 2: ("last", "int")})
    return r["first"], r["last"]


INT, TEXT = "int", "text"
COMMANDS = {
    9: ("open_job", {1: ("height", INT), 2: ("previous", "bytes"), 3: ("bits", INT), 4: ("timestamp", INT),
                     5: ("nonces", "range"), 6: ("chunk_size", INT)}),
    10: ("grant_work", {1: ("job_id", INT), 2: ("miner", TEXT), 3: ("instance", "bytes"), 4: ("request_id", INT),
                        5: ("chunks", INT)}),
    11: ("finish", {1: ("job_id", INT), 2: ("grant_id", INT), 3: ("miner", TEXT), 4: ("timestamp", INT),
                    5: ("nonces", "range"), 6: ("receipt", INT)}),
    12: ("solve", {1: ("job_id", INT), 2: ("grant_id", INT), 3: ("miner", TEXT), 4: ("timestamp", INT), 5: ("nonce", INT)}),
    13: ("release", {1: ("miner", TEXT), 2: ("grant_ids", "ints"), 3: ("reason", INT), 4: ("forget", INT)}),
    14: ("strike", {1: ("miner", TEXT), 2: ("reason", TEXT)}),
    15: ("roll", {1: ("job_id", INT), 2: ("round", INT), 3: ("timestamp", INT)}),
    16: ("submitting", {1: ("job_id", INT)}),
    17: ("submitted", {1: ("job_id", INT), 2: ("verdict", INT), 3: ("detail", TEXT)}),
    18: ("close_job", {1: ("job_id", INT), 2: ("reason", TEXT)}),
    19: ("revoke", {1: ("job_id", INT), 2: ("round", INT), 3: ("miner", TEXT), 4: ("ranges", "ranges"), 5: ("reason", TEXT)}),
}
VERDICTS = {1: "success", 2: "wrong", 3: "stale", 4: "unknown"}


def commands_of(data):
    """Yields (name, command) of a stored entry; name is None for those that do not touch work."""
    if not data or data[0] != 1:
        raise ValueError("entry version")
    for number, value in fields(data[1:]):
        if number == 4:
            (kind, body), = fields(value)
            name, names = COMMANDS.get(kind, (None, None))
            yield name, message(body, names) if name else None


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


class Work:
    """Who owns each chunk. apply returns whether the command changed anything, and the nonces of a new grant."""

    def __init__(self):
        self.job_id, self.job, self.phase, self.round = 0, None, "closed", 0
        self.owners, self.touched, self.grants, self.last_grant = [], [], {}, 0
        self.miners = {}  # name: {request, grant, strikes}
        self.accepted, self.blocks, self.solution = 0, [], None
        self.ranges = self.nonces = 0

    def apply(self, name, c):
        return getattr(self, name)(c)

    def chunk_range(self, first, last):
        """The chunks that nonces are exactly, else None."""
        (lo, hi), size = self.job["nonces"], self.job["chunk_size"]
        if not lo <= first <= last <= hi or (first - lo) % size or (last != hi and (last + 1 - lo) % size):
            return None
        return range((first - lo) // size, (last - lo) // size + 1)

    def nonces_of(self, chunks):
        (lo, hi), size = self.job["nonces"], self.job["chunk_size"]
        return lo + chunks[0] * size, min(lo + (chunks[-1] + 1) * size - 1, hi)

    def open(self, job_id):
        return self.job is not None and job_id == self.job_id and self.phase == "open"

    def open_job(self, c):
        if self.phase != "closed" or c["height"] <= self.accepted:
            return False
        if self.job is not None and self.round == 0 and c == self.job:
            return False
        self.job_id, self.job, self.phase, self.round = self.job_id + 1, dict(c), "open", 0
        total = (c["nonces"][1] - c["nonces"][0]) // c["chunk_size"] + 1
        self.owners, self.touched, self.grants, self.solution = [PENDING] * total, [False] * total, {}, None
        return True

    def grant_work(self, c):
        if not self.open(c["job_id"]) or c["request_id"] == 0 or c["chunks"] == 0:
            return False
        m = self.miners.get(c["miner"])
        if m and (m["strikes"] >= MAX_STRIKES or c["request_id"] <= m["request"]):
            return False
        if PENDING not in self.owners:
            return False
        first = end = self.owners.index(PENDING)
        while end < len(self.owners) and end - first < c["chunks"] and self.owners[end] == PENDING:
            end += 1
        self.last_grant += 1
        for k in range(first, end):
            self.owners[k], self.touched[k] = self.last_grant, True
        self.grants[self.last_grant] = c["miner"]
        m = self.miners.setdefault(c["miner"], {"strikes": 0})
        m["request"], m["grant"] = c["request_id"], self.last_grant
        return self.last_grant, self.nonces_of(range(first, end))

    def answers(self, c):
        return self.open(c["job_id"]) and c["timestamp"] == self.job["timestamp"] and self.grants.get(c["grant_id"]) == c["miner"]

    def finish(self, c):
        if not self.answers(c):
            return False
        chunks = self.chunk_range(*c["nonces"])
        if chunks is None or not c["nonces"][0] <= c["receipt"] <= c["nonces"][1]:
            return False
        if chunks[0] != self.owners.index(c["grant_id"]) or any(self.owners[k] != c["grant_id"] for k in chunks):
            return False
        if zero_bits(digest(self.job["previous"], c["receipt"], c["timestamp"])) >= self.job["bits"]:
            return False
        for k in chunks:
            self.owners[k] = FINISHED
        if c["grant_id"] not in self.owners:
            del self.grants[c["grant_id"]]
        self.miners.setdefault(c["miner"], {"strikes": 0, "request": 0, "grant": 0})
        self.ranges += 1
        self.nonces += c["nonces"][1] - c["nonces"][0] + 1
        return True

    def solve(self, c):
        lo, hi = self.job["nonces"] if self.job else (1, 0)
        if not self.answers(c) or not lo <= c["nonce"] <= hi:
            return False
        chunk = (c["nonce"] - lo) // self.job["chunk_size"]
        proof = digest(self.job["previous"], c["nonce"], c["timestamp"])
        if zero_bits(proof) < self.job["bits"] or self.owners[chunk] != c["grant_id"]:
            return False
        below = self.owners[:chunk]
        pending = [k for k in range(chunk) if self.owners[k] == PENDING]
        gaps = sum(1 for k in pending if not self.touched[k])
        self.phase = "solved"
        self.solution = {"height": self.job["height"], "hash": proof.hex(), "nonce": c["nonce"], "miner": c["miner"],
                         "finished": below.count(FINISHED), "returned": len(pending) - gaps, "gaps": gaps,
                         "interrupted": chunk - below.count(FINISHED) - len(pending)}
        if gaps:
            raise ValueError("%d chunks below the solution were never granted" % gaps)
        return True

    def release(self, c):
        known = c["miner"] in self.miners
        for grant in c["grant_ids"]:
            if not 0 < grant <= self.last_grant or self.grants.get(grant, c["miner"]) != c["miner"]:
                return False
        changed = False
        if self.phase == "open":
            for grant in [g for g, miner in self.grants.items() if miner == c["miner"]]:
                if not c["grant_ids"] or c["forget"] or grant in c["grant_ids"]:
                    self.owners = [PENDING if o == grant else o for o in self.owners]
                    del self.grants[grant]
                    changed = True
        if c["forget"] and known:
            del self.miners[c["miner"]]
            changed = True
        return changed

    def strike(self, c):
        self.miners.setdefault(c["miner"], {"strikes": 0, "request": 0, "grant": 0})["strikes"] += 1
        return True

    def roll(self, c):
        if not self.open(c["job_id"]) or c["round"] != self.round + 1 or c["timestamp"] <= self.job["timestamp"]:
            return False
        if any(o != FINISHED for o in self.owners):
            return False
        self.round, self.job["timestamp"] = c["round"], c["timestamp"]
        self.owners, self.touched = [PENDING] * len(self.owners), [False] * len(self.owners)
        return True

    def submitting(self, c):
        if self.job is None or c["job_id"] != self.job_id or self.phase not in ("solved", "submitting"):
            return False
        self.phase = "submitting"
        return True

    def submitted(self, c):
        if self.job is None or c["job_id"] != self.job_id or self.phase != "submitting":
            return False
        self.phase = "closed"
        self.solution["verdict"] = VERDICTS[c["verdict"]]
        self.blocks.append(self.solution)
        if c["verdict"] == 1:
            self.accepted = self.job["height"]
        return True

    def close_job(self, c):
        if not self.open(c["job_id"]):
            return False
        self.phase = "closed"
        return True

    def revoke(self, c):
        if not self.open(c["job_id"]) or c["round"] != self.round or not c["ranges"]:
            return False
        runs = [self.chunk_range(*r) for r in c["ranges"]]
        if None in runs:
            return False
        chunks = [k for run in runs for k in run]
        if len(set(chunks)) != len(chunks) or any(self.owners[k] != FINISHED for k in chunks):
            return False
        for k in chunks:
            self.owners[k] = PENDING
        return True


def verify(lines):
    header = json.loads(next(lines))
    if header != {"format": "raftmine history", "version": 1}:
        raise Broken(0, "no export of version 1")
    chain, tree, work = bytes(32), Tree(), Work()
    last = records = 0
    end = None
    for line in lines:
        try:
            record = json.loads(line)
            if "end" in record:
                end = record["end"]
                break
            index, term = record["index"], record["term"]
            data = base64.b64decode(record["data"], validate=True)
            stored = bytes.fromhex(record["chain"])
        except (ValueError, KeyError, TypeError) as error:
            raise Broken(last, "line after it: %s" % error)
        leaf = struct.pack(">QQQ", index, term, len(data)) + data
        chain = hashlib.sha256(chain + leaf).digest()
        if chain != stored:
            raise Broken(index, "chain")
        tree.add(leaf)
        records += 1
        last = index
        try:
            commands, told = list(commands_of(data)), record["entry"]["commands"]
            if len(commands) != len(told):
                raise ValueError("%d commands, the export says %d" % (len(commands), len(told)))
            for (name, command), said in zip(commands, told):
                if name is None:
                    continue
                came = work.apply(name, command)
                if said["command"] != name or (said["outcome"] == "done") != bool(came):
                    raise ValueError("%s: the export says %s" % (name, said["outcome"]))
                if isinstance(came, tuple):
                    grant, (first, final) = came
                    if said["grant"] != {"id": grant, "nonces": {"first": first, "last": final}}:
                        raise ValueError("grant %d: the export says %s" % (grant, said["grant"]))
        except (ValueError, KeyError, IndexError, UnicodeDecodeError) as error:
            raise Broken(index, str(error))
    if end is None:
        raise Broken(last, "the end is missing")
    if (end["records"], end["index"], end["chain"], end["tree"]) != (records, last, chain.hex(), tree.root().hex()):
        raise Broken(last, "the end is another one")
    return {"holds": True, "records": records, "chain": chain.hex(), "tree": tree.root().hex(), "ranges": work.ranges,
            "nonces": work.nonces, "blocks": work.blocks}


def main():
    with open(sys.argv[1], encoding="utf-8", newline="\n") as file:
        try:
            verdict = verify(iter(file))
        except Broken as broken:
            verdict = {"holds": False, "index": broken.index, "what": broken.what}
    print(json.dumps(verdict))
    sys.exit(0 if verdict["holds"] else 1)


if __name__ == "__main__":
    main()
