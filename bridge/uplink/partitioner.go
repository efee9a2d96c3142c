package uplink

import "encoding/binary"

// partitionOf is Kafka's default partitioner for keyed records: murmur2 of the key, made positive, modulo the number of partitions
// (org.apache.kafka.clients.producer.internals.BuiltInPartitioner). A record without a key goes where spread says, which the caller
// derives from the round, so that the outcome is a function of the round's plan alone.
func partitionOf(key []byte, spread int64, count int32) int32 {
	if key == nil {
		return int32(uint64(spread) % uint64(count))
	}
	return int32(murmur2(key)&0x7fffffff) % count
}

// murmur2 is the 32-bit MurmurHash2 with the seed that Kafka uses.
func murmur2(b []byte) uint32 {
	const seed, m, r = 0x9747b28c, 0x5bd1e995, 24
	h := seed ^ uint32(len(b))
	for ; len(b) >= 4; b = b[4:] {
		k := binary.LittleEndian.Uint32(b) * m
		k ^= k >> r
		h = h*m ^ k*m
	}
	switch len(b) {
	case 3:
		h ^= uint32(b[2]) << 16
		fallthrough
	case 2:
		h ^= uint32(b[1]) << 8
		fallthrough
	case 1:
		h = (h ^ uint32(b[0])) * m
	}
	h = (h ^ h>>13) * m
	return h ^ h>>15
}
