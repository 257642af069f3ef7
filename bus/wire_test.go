package bus

import (
	"bytes"
	"encoding/json"
	"flag"
	"iter"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the golden files of messages that have none")

// wireMessage is one payload of the table: of a row, or of a service's reply.
type wireMessage struct {
	name    string // of its golden file, and on the wire
	example Message
	decode  func(data []byte) (Message, error)
}

func wire[M Message](name string, example M) wireMessage {
	return wireMessage{name: name, example: example, decode: func(data []byte) (Message, error) {
		return decode[M](name, &nats.Msg{Header: nats.Header{headerType: {name}}, Data: data})
	}}
}

func (s Service[Req, Resp]) examples(req Req, resp Resp) []wireMessage {
	return []wireMessage{wire(typeOf(*s.row), req), wire(replyTypeOf(*s.row), resp)}
}

func (s Signal[M]) examples(msg M) []wireMessage { return []wireMessage{wire(typeOf(*s.row), msg)} }
func (q Queue[M]) examples(msg M) []wireMessage  { return []wireMessage{wire(typeOf(*q.row), msg)} }
func (e Events[M]) examples(msg M) []wireMessage { return []wireMessage{wire(typeOf(*e.row), msg)} }
func (h Hint[M]) examples(msg M) []wireMessage   { return []wireMessage{wire(typeOf(*h.row), msg)} }

func (m wireMessage) golden() string { return filepath.Join("testdata", "wire", m.name+".json") }

// pretty is how a golden file holds a message.
func pretty(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, json.Indent(&b, data, "", "  "))
	b.WriteByte('\n')
	return b.Bytes()
}

func marshal(t testing.TB, m Message) []byte {
	t.Helper()
	data, err := json.Marshal(m)
	require.NoError(t, err)
	return data
}

// wireNames yields the wire names of all payloads of the table, and that of the fault.
func wireNames() iter.Seq[string] {
	return func(yield func(string) bool) {
		for row := range Table() {
			if !yield(typeOf(row)) || row.Kind == KindService && !yield(replyTypeOf(row)) {
				return
			}
		}
		yield(typeFault)
	}
}

func TestWire_EveryMessageOfTheTableHasAnExampleAndAGoldenFile(t *testing.T) {
	t.Parallel()
	var want, have []string
	for name := range wireNames() {
		want = append(want, name)
	}
	for _, m := range wireExamples() {
		have = append(have, m.name)
	}
	require.ElementsMatch(t, want, have)
	files, err := os.ReadDir(filepath.Join("testdata", "wire"))
	require.NoError(t, err)
	var golden []string
	for _, f := range files {
		golden = append(golden, strings.TrimSuffix(f.Name(), ".json"))
	}
	require.ElementsMatch(t, want, golden, "go test ./bus -run TestWire -update writes the missing ones")
}

// The golden files are the protocol: agents in customers' accounts are upgraded last. A new field adds a line to them;
// a line that changes or goes is a new type and a new row.
func TestWire_MessagesAreWhatTheirGoldenFilesSay(t *testing.T) {
	t.Parallel()
	for _, m := range wireExamples() {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			requireFilled(t, reflect.ValueOf(m.example), m.name)
			if _, err := os.Stat(m.golden()); *update && os.IsNotExist(err) {
				require.NoError(t, os.MkdirAll(filepath.Dir(m.golden()), 0o750))
				require.NoError(t, os.WriteFile(m.golden(), pretty(t, marshal(t, m.example)), 0o600))
			}
			golden, err := os.ReadFile(m.golden())
			require.NoError(t, err)
			msg, err := m.decode(golden)
			require.NoError(t, err)
			require.Equal(t, string(golden), string(pretty(t, marshal(t, msg))), "decoded and encoded again")
			require.Equal(t, string(golden), string(pretty(t, marshal(t, m.example))), "the example has other content")
		})
	}
}

// requireFilled makes sure that a field which is added to a message is added to its example, and so to its golden file.
func requireFilled(t *testing.T, v reflect.Value, path string) {
	t.Helper()
	switch v.Kind() {
	case reflect.Pointer:
		require.False(t, v.IsNil(), "%s is empty", path)
		requireFilled(t, v.Elem(), path)
	case reflect.Slice:
		require.NotZero(t, v.Len(), "%s is empty", path)
		requireFilled(t, v.Index(0), path+"[0]")
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			require.False(t, v.IsZero(), "%s is empty", path)
			return
		}
		for i := range v.NumField() {
			requireFilled(t, v.Field(i), path+"."+v.Type().Field(i).Name)
		}
	default:
		require.False(t, v.IsZero(), "%s is empty", path)
	}
}

// House rules of the wire: snake_case names, nothing left out, no type that marshals itself in a surprising way.
func TestWire_FieldsFollowTheHouseRules(t *testing.T) {
	t.Parallel()
	var check func(t *testing.T, typ reflect.Type)
	check = func(t *testing.T, typ reflect.Type) {
		t.Helper()
		switch typ.Kind() {
		case reflect.Pointer, reflect.Slice:
			check(t, typ.Elem())
		case reflect.Struct:
			if typ == reflect.TypeFor[time.Time]() {
				return
			}
			for f := range typ.Fields() {
				require.Regexp(t, `^[a-z][a-z0-9_]*$`, f.Tag.Get("json"), "%s.%s", typ, f.Name)
				require.False(t, f.Anonymous, "%s embeds %s", typ, f.Name)
				check(t, f.Type)
			}
		case reflect.String, reflect.Bool, reflect.Int, reflect.Int64, reflect.Uint64:
		default:
			t.Errorf("%s is of a kind that the wire does not carry", typ)
		}
	}
	for _, m := range wireExamples() {
		check(t, reflect.TypeOf(m.example))
	}
}

func TestDecode_IgnoresFieldsOfANewerPeerAndRefusesWhatIsWrong(t *testing.T) {
	t.Parallel()
	for _, m := range wireExamples() {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			data := marshal(t, m.example)
			newer := append(slices.Clone(data[:len(data)-1]), `,"added_later":{"x":1}}`...)
			newer = bytes.Replace(newer, []byte("{,"), []byte("{"), 1) // of the empty message
			msg, err := m.decode(newer)
			require.NoError(t, err)
			require.Equal(t, string(data), string(marshal(t, msg)))
			for name, bad := range map[string][]byte{
				"nothing": {}, "trailing data": append(slices.Clone(data), data...), "cut off": data[:len(data)-1], "list": []byte(`[]`), "text": []byte(`"x"`),
			} {
				_, err := m.decode(bad)
				require.Error(t, err, name)
			}
		})
	}
	_, err := decode[BuildRef]("build.get.v1", &nats.Msg{Data: []byte(`{"build":"bld-aaaaaaaaaaaaaaaa"}`)})
	require.ErrorContains(t, err, `is of type "", want "build.get.v1"`)
	_, err = encode("build.get.v1", "x", BuildRef{})
	require.ErrorContains(t, err, "invalid build.get.v1")
}

// FuzzDecode: no input makes a decoder panic, and what it accepts means the same after another trip over the wire.
func FuzzDecode(f *testing.F) {
	messages := wireExamples()
	for i, m := range messages {
		golden, err := os.ReadFile(m.golden())
		require.NoError(f, err)
		f.Add(uint8(i), golden)
	}
	f.Fuzz(func(t *testing.T, which uint8, data []byte) {
		m := messages[int(which)%len(messages)]
		msg, err := m.decode(data)
		if err != nil {
			return
		}
		first := marshal(t, msg)
		again, err := m.decode(first)
		require.NoError(t, err)
		require.Equal(t, string(first), string(marshal(t, again)))
	})
}
