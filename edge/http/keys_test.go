package http

import (
	"errors"
	"fmt"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestKeysAreBoundedAndComeBack(t *testing.T) {
	k, again := newKeys(), newKeys()
	name := func(i int) key { return keyOf(fmt.Append(nil, i), "c", "t") }
	for i := range keysMax + 10 {
		r, mine := k.claim(name(i))
		if !mine {
			t.Fatalf("key %d is known", i)
		}
		k.settle(name(i), r, i, nil)
	}
	if len(k.known) != keysMax || len(k.order) != keysMax {
		t.Fatalf("%d keys known, %d in order", len(k.known), len(k.order))
	}
	if err := k.Dump(again.Apply); err != nil {
		t.Fatal(err)
	}
	if _, mine := again.claim(name(0)); !mine {
		t.Fatal("the oldest key is still known")
	}
	r, mine := again.claim(name(keysMax))
	if mine {
		t.Fatal("a key is forgotten")
	}
	if n, err := r.wait(t.Context()); n != keysMax || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
}

func TestFailedRequestsMayComeAgain(t *testing.T) {
	k := newKeys()
	id := keyOf([]byte("k"), "c", "t")
	r, _ := k.claim(id)
	second, mine := k.claim(id)
	if mine {
		t.Fatal("two requests hold the key")
	}
	broken := errors.New("broken")
	k.settle(id, r, 0, broken)
	if _, err := second.wait(t.Context()); !errors.Is(err, broken) {
		t.Fatalf("the second request got %v", err)
	}
	if _, mine := k.claim(id); !mine {
		t.Fatal("the key of a failed request is still held")
	}
}

func TestKeysTellPartsApart(t *testing.T) {
	if keyOf([]byte("a"), "bc", "d") == keyOf([]byte("ab"), "c", "d") {
		t.Fatal("two different requests share a key")
	}
}

func TestCutNotesAreRefused(t *testing.T) {
	for _, note := range [][]byte{nil, make([]byte, 16), append(make([]byte, 16), 0x80)} {
		if err := newKeys().Apply(note); err == nil {
			t.Errorf("% x was taken", note)
		}
	}
}
