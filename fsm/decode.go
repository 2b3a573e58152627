package fsm

import (
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"raftmine/fsm/pow"
)

// Decoder decodes entries, one after the other. Nearly all of a long history is GrantWork and Finish: entries that hold
// nothing else it reads itself, without reflection and with each name kept once. It gives up at whatever is not in the
// plainest form, and then DecodeEntry decides: what is refused, and why, is that function's alone. The zero value is
// ready. A Decoder is not safe for concurrent use.
type Decoder struct {
	miners, versions names
	commands         []Command // of the last entry
}

// maxNames bounds the memory that names take, and maxKept that of commands.
const (
	maxNames = 1 << 16
	maxKept  = 1 << 10
)

// Decode is DecodeEntry. The entry's Commands are valid until the next call.
func (d *Decoder) Decode(data []byte) (Entry, error) {
	if entry, ok := d.plain(data); ok {
		return entry, nil
	}
	return DecodeEntry(data)
}

// Field numbers of raftmine.v1.
const (
	fieldLeader, fieldUnixMilli, fieldVersion, fieldCommand = 1, 2, 3, 4

	fieldGrantWork, fieldFinish = 10, 11
)

// plain decodes an entry whose messages hold each field at most once, and no commands but GrantWork and Finish.
func (d *Decoder) plain(data []byte) (entry Entry, ok bool) {
	if len(data) < 2 || len(data) > MaxEntrySize || data[0] != EntryVersion {
		return entry, false
	}
	if cap(d.commands) > maxKept {
		d.commands = nil
	}
	d.commands = d.commands[:0]
	in := fields{rest: data[1:]}
	for in.next() {
		switch in.number {
		case fieldLeader:
			entry.LeaderID = in.integer(fieldLeader)
		case fieldUnixMilli:
			entry.UnixMilli = in.integer(fieldUnixMilli)
		case fieldVersion:
			entry.Version = d.versions.get(in.bytes(fieldVersion), &in, validVersion)
		case fieldCommand:
			command, ok := d.command(in.repeated())
			if !ok || len(d.commands) == MaxCommands {
				return entry, false
			}
			d.commands = append(d.commands, command)
		default:
			return entry, false
		}
	}
	entry.Commands = d.commands
	return entry, !in.odd && len(d.commands) > 0
}

func (d *Decoder) command(data []byte) (Command, bool) {
	in := fields{rest: data}
	if !in.next() {
		return nil, false
	}
	number := in.number
	body := in.repeated()
	if in.odd || len(in.rest) > 0 {
		return nil, false
	}
	switch number {
	case fieldGrantWork:
		return d.grantWork(body)
	case fieldFinish:
		return d.finish(body)
	}
	return nil, false
}

func (d *Decoder) grantWork(data []byte) (Command, bool) {
	var c GrantWork
	in := fields{rest: data}
	for in.next() {
		switch in.number {
		case 1:
			c.JobID = in.integer(1)
		case 2:
			c.Miner = d.miners.get(in.bytes(2), &in, validMiner)
		case 3:
			id := in.bytes(3)
			if len(id) != len(c.Instance) {
				return nil, false
			}
			copy(c.Instance[:], id)
		case 4:
			c.RequestID = in.integer(4)
		case 5:
			c.Chunks = in.integer(5)
		default:
			return nil, false
		}
	}
	// A missing name or instance is not plain: it breaks a rule.
	return c, !in.odd && in.seen&(1<<2|1<<3) == 1<<2|1<<3
}

func (d *Decoder) finish(data []byte) (Command, bool) {
	var c Finish
	in := fields{rest: data}
	for in.next() {
		switch in.number {
		case 1:
			c.JobID = in.integer(1)
		case 2:
			c.GrantID = in.integer(2)
		case 3:
			c.Miner = d.miners.get(in.bytes(3), &in, validMiner)
		case 4:
			c.Timestamp = in.integer(4)
		case 5:
			nonces, ok := plainRange(in.bytes(5))
			if !ok {
				return nil, false
			}
			c.Nonces = nonces
		case 6:
			c.Receipt = in.integer(6)
		default:
			return nil, false
		}
	}
	return c, !in.odd && in.seen&(1<<3|1<<5) == 1<<3|1<<5
}

func plainRange(data []byte) (r pow.Range, ok bool) {
	in := fields{rest: data}
	for in.next() {
		switch in.number {
		case 1:
			r.First = in.integer(1)
		case 2:
			r.Last = in.integer(2)
		default:
			return r, false
		}
	}
	return r, !in.odd
}

func validVersion(text []byte) bool { return len(text) <= MaxVersion && utf8.Valid(text) }

func validMiner(text []byte) bool { return CheckMinerName(string(text)) == nil }

// names keeps strings that were checked, each once.
type names struct {
	kept map[string]string
	last string // nearly always the next one, too
}

// get returns text as a string, the same one each time. Text that is not valid is odd.
func (k *names) get(text []byte, in *fields, valid func([]byte) bool) string {
	if k.last != "" && string(text) == k.last {
		return k.last
	}
	if known, found := k.kept[string(text)]; found {
		k.last = known
		return known
	}
	if !valid(text) {
		in.odd = true
		return ""
	}
	if k.kept == nil || len(k.kept) >= maxNames {
		k.kept = make(map[string]string)
	}
	k.last = string(text)
	k.kept[k.last] = k.last
	return k.last
}

// fields walks the fields of a message. Once it met something that is not plain, odd is true and the walk ends.
type fields struct {
	rest   []byte
	number protowire.Number
	kind   protowire.Type
	seen   uint64 // bit n: field n was there
	odd    bool
}

// next moves to the next field. Its value must be taken before the next call.
func (f *fields) next() bool {
	if f.odd || len(f.rest) == 0 {
		return false
	}
	tag := f.rest[0] // one byte: fields 1 to 15, as all here are
	if tag >= 0x80 || tag < 1<<3 {
		f.odd = true
		return false
	}
	f.number, f.kind, f.rest = protowire.Number(tag>>3), protowire.Type(tag&7), f.rest[1:]
	return true
}

// once notes that a field is there.
func (f *fields) once(number protowire.Number) {
	bit := uint64(1) << number
	if f.seen&bit != 0 {
		f.odd = true
	}
	f.seen |= bit
}

func (f *fields) integer(number protowire.Number) uint64 {
	f.once(number)
	if f.kind != protowire.VarintType {
		f.odd = true
		return 0
	}
	return f.varint()
}

func (f *fields) bytes(number protowire.Number) []byte {
	f.once(number)
	return f.repeated()
}

func (f *fields) repeated() []byte {
	if f.kind != protowire.BytesType {
		f.odd = true
		return nil
	}
	length := f.varint()
	if f.odd || length > uint64(len(f.rest)) {
		f.odd = true
		return nil
	}
	value := f.rest[:length]
	f.rest = f.rest[length:]
	return value
}

func (f *fields) varint() uint64 {
	if len(f.rest) > 0 && f.rest[0] < 0x80 { // lengths and small numbers
		value := uint64(f.rest[0])
		f.rest = f.rest[1:]
		return value
	}
	value, n := protowire.ConsumeVarint(f.rest)
	if n < 0 {
		f.odd = true
		return 0
	}
	f.rest = f.rest[n:]
	return value
}
