package workload

import (
	"bytes"
	"strconv"
)

// minSize is room for a writer's name and a number.
const minSize = 48

// value makes the bytes of a record: writer, number, and padding that depends on both.
func value(writer string, number int64, size int) []byte {
	b := make([]byte, 0, size)
	b = append(b, writer...)
	b = append(b, ' ')
	b = strconv.AppendInt(b, number, 10)
	b = append(b, ' ')
	for x := uint64(number)*0x9e3779b97f4a7c15 + uint64(len(writer)); len(b) < size; x = x*6364136223846793005 + 1442695040888963407 {
		b = append(b, 'a'+byte(x>>59)%26)
	}
	return b
}

// parse reads writer and number; ok is false for values that value has not made.
func parse(b []byte) (writer string, number int64, ok bool) {
	name, rest, ok := bytes.Cut(b, []byte(" "))
	digits, _, ok2 := bytes.Cut(rest, []byte(" "))
	if !ok || !ok2 {
		return "", 0, false
	}
	number, err := strconv.ParseInt(string(digits), 10, 64)
	return string(name), number, err == nil
}
