package fsm

import (
	"errors"
	"fmt"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"raftmine/fsm/fsmpb"
)

// EntryVersion is the format version that EncodeEntry writes, an entry's first byte. Protocol: a change of the schema or
// of its meaning is a new version, and the old ones stay readable.
const EntryVersion = 1

// ErrBadEntry is returned for bytes that are no log entry of a known version. A replica that meets one must stop: a
// stopped replica is repaired, a diverged one is believed.
var ErrBadEntry = errors.New("log entry cannot be decoded")

// ErrUnfitEntry is returned for an entry that breaks a limit and must not be proposed.
var ErrUnfitEntry = errors.New("log entry cannot be encoded")

// EncodeEntry returns the stored bytes of an entry: the version byte, then an Entry of raftmine.fsm.v1. The same entry
// always gives the same bytes with the same build; replicas never depend on that.
func EncodeEntry(entry Entry) ([]byte, error) {
	if len(entry.Commands) > MaxCommands {
		return nil, fmt.Errorf("%w: %d commands, want at most %d", ErrUnfitEntry, len(entry.Commands), MaxCommands)
	}
	if err := checkText("software version", entry.Version, MaxVersion); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnfitEntry, err)
	}
	stored := &fsmpb.Entry{LeaderId: entry.LeaderID, UnixMs: entry.UnixMilli, Version: entry.Version}
	stored.Commands = make([]*fsmpb.Command, len(entry.Commands))
	for i, command := range entry.Commands {
		if err := checkShape(command); err != nil {
			return nil, fmt.Errorf("%w: command %d (%T): %w", ErrUnfitEntry, i, command, err)
		}
		if stored.Commands[i] = storeCommand(command); stored.Commands[i] == nil {
			return nil, fmt.Errorf("%w: command %d: %T is no command value", ErrUnfitEntry, i, command)
		}
	}
	data, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend([]byte{EntryVersion}, stored)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnfitEntry, err)
	}
	if len(data) > MaxEntrySize {
		return nil, fmt.Errorf("%w: %d bytes, want at most %d: propose fewer commands at once",
			ErrUnfitEntry, len(data), MaxEntrySize)
	}
	return data, nil
}

// DecodeEntry reads what EncodeEntry wrote. It refuses whatever it does not know: a newer leader's fields must not be
// ignored by an older replica. Errors wrap ErrBadEntry and name the version.
func DecodeEntry(data []byte) (Entry, error) {
	if len(data) == 0 {
		return Entry{}, fmt.Errorf("%w: no version: it is empty", ErrBadEntry)
	}
	version := data[0]
	if version != EntryVersion {
		return Entry{}, fmt.Errorf("%w: version %d, this software reads version %d: install the version that wrote it",
			ErrBadEntry, version, EntryVersion)
	}
	entry, err := decodeEntry(data[1:])
	if err != nil {
		return Entry{}, fmt.Errorf("%w: version %d: %w", ErrBadEntry, version, err)
	}
	return entry, nil
}

func decodeEntry(data []byte) (Entry, error) {
	if len(data) > MaxEntrySize-1 {
		return Entry{}, fmt.Errorf("%d bytes, want at most %d", len(data)+1, MaxEntrySize)
	}
	if err := checkCommandCount(data); err != nil {
		return Entry{}, err
	}
	var stored fsmpb.Entry
	if err := proto.Unmarshal(data, &stored); err != nil {
		return Entry{}, err
	}
	if err := checkKnown(stored.ProtoReflect()); err != nil {
		return Entry{}, err
	}
	if err := checkText("software version", stored.GetVersion(), MaxVersion); err != nil {
		return Entry{}, err
	}
	entry := Entry{LeaderID: stored.GetLeaderId(), UnixMilli: stored.GetUnixMs(), Version: stored.GetVersion()}
	if len(stored.GetCommands()) > 0 {
		entry.Commands = make([]Command, len(stored.GetCommands()))
	}
	for i, storedCommand := range stored.GetCommands() {
		command, err := loadCommand(storedCommand)
		if err != nil {
			return Entry{}, fmt.Errorf("command %d: %w", i, err)
		}
		if err := checkShape(command); err != nil {
			return Entry{}, fmt.Errorf("command %d (%T): %w", i, command, err)
		}
		entry.Commands[i] = command
	}
	return entry, nil
}

// checkCommandCount counts the commands before any memory is spent on them: an empty one costs 2 bytes in the entry and
// a hundred decoded.
func checkCommandCount(data []byte) error {
	const commandsField = 4
	count := 0
	for len(data) > 0 {
		number, _, n := protowire.ConsumeField(data)
		if n < 0 {
			return protowire.ParseError(n)
		}
		if number == commandsField {
			if count++; count > MaxCommands {
				return fmt.Errorf("more than %d commands", MaxCommands)
			}
		}
		data = data[n:]
	}
	return nil
}

// checkKnown reports the first message that holds fields, or values of an enum, which the schema does not know.
func checkKnown(message protoreflect.Message) error {
	if unknown := message.GetUnknown(); len(unknown) > 0 {
		number, _, _ := protowire.ConsumeTag(unknown)
		return fmt.Errorf("%s has unknown field %d", message.Descriptor().FullName(), number)
	}
	inner := innerFieldsOf(message.Descriptor())
	for _, field := range inner.fields {
		if err := checkKnownField(message, field); err != nil {
			return err
		}
	}
	for _, oneof := range inner.oneofs {
		if field := message.WhichOneof(oneof); field != nil {
			if err := checkKnownField(message, field); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkKnownField(message protoreflect.Message, field protoreflect.FieldDescriptor) error {
	if !holdsUnknown(field) || !message.Has(field) {
		return nil
	}
	value := message.Get(field)
	switch {
	case field.Kind() == protoreflect.EnumKind:
		if field.Enum().Values().ByNumber(value.Enum()) == nil {
			return fmt.Errorf("%s has unknown value %d", field.FullName(), value.Enum())
		}
	case field.IsList():
		list := value.List()
		for i := range list.Len() {
			if err := checkKnown(list.Get(i).Message()); err != nil {
				return err
			}
		}
	default:
		return checkKnown(value.Message())
	}
	return nil
}

// holdsUnknown reports whether a field can hold what checkKnown looks for.
func holdsUnknown(field protoreflect.FieldDescriptor) bool {
	return field.Kind() == protoreflect.EnumKind || field.Kind() == protoreflect.MessageKind
}

// innerFields are the fields of a message that checkKnown looks into: few have any, and to range over all fields of each
// message took as long as to decode it.
type innerFields struct {
	fields []protoreflect.FieldDescriptor
	oneofs []protoreflect.OneofDescriptor
}

var innerFieldsKept sync.Map // of innerFields by message descriptor

func innerFieldsOf(message protoreflect.MessageDescriptor) innerFields {
	if kept, ok := innerFieldsKept.Load(message); ok {
		return kept.(innerFields)
	}
	var inner innerFields
	for i := range message.Fields().Len() {
		if field := message.Fields().Get(i); field.ContainingOneof() == nil && holdsUnknown(field) {
			inner.fields = append(inner.fields, field)
		}
	}
	for i := range message.Oneofs().Len() {
		inner.oneofs = append(inner.oneofs, message.Oneofs().Get(i))
	}
	innerFieldsKept.Store(message, inner)
	return inner
}
