// Package scale measures what partitions cost: it starts three core nodes as a user would, or looks at a cluster that runs,
// creates so and so many partitions, and says what they take of memory, processor, open files and time.
//
// It is a stranger: it speaks Kafka to the nodes, runs them by their command line, and reads /proc and /metrics. It judges
// nothing; what a figure should be is for the reader.
package scale
