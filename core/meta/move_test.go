package meta

import (
	"slices"
	"testing"
)

// moveCluster is a topic of two partitions in shard 1, with shards 2 and 3 to move them to.
func moveCluster(t *testing.T) (*State, func(Command) Result, TopicID) {
	t.Helper()
	s, do := cluster(t, 1, 2, 3)
	id := TopicID{1}
	var shards []ShardSpec
	for n := range 3 {
		shards = append(shards, ShardSpec{ID: ShardID(n + 1), Voters: []Server{server(NodeID(n+1), "a"), server(NodeID((n+1)%3+1), "a")}[:1+n%2]})
	}
	r := do(&CreateTopics{Shards: shards, Topics: []TopicSpec{{ID: id, Name: "t", ReplicationFactor: 1, Shards: []ShardID{1, 1}}}})
	if r.Topics[0].Err != nil {
		t.Fatal(r.Topics[0].Err)
	}
	return s, do, id
}

func TestMoveIsFinishedOnce(t *testing.T) {
	s, do, id := moveCluster(t)
	if r := do(&ChangeMoves{Changes: []MoveChange{{id, 0, 2}, {id, 0, 3}, {id, 5, 2}}}); r.Errors[0] != nil || r.Errors[1] == nil || r.Errors[2].Code != CodeUnknownTopicOrPartition {
		t.Fatalf("%+v", r)
	}
	move := s.Image().Partition(id, 0).Move
	if move == nil || move.To != 2 || move.ID != s.Image().Index() || s.Image().Shard(2).ModIndex != move.ID {
		t.Fatalf("%+v", move)
	}
	if r := do(&FinishMove{Topic: id, Index: 0, Move: move.ID + 1}); r.Err == nil {
		t.Fatal("a move was finished under another id")
	}
	if r := do(&FinishMove{Topic: id, Index: 0, Move: move.ID, EpochBase: 40}); r.Err != nil {
		t.Fatal(r.Err)
	}
	p := s.Image().Partition(id, 0)
	if p.Shard != 2 || p.EpochBase != 40 || p.Arrived != move.ID || p.Move != nil {
		t.Fatalf("%+v", p)
	}
	if rf := s.Image().TopicByID(id).ReplicationFactor; rf != 2 {
		t.Fatalf("replication factor %d: further partitions are to be like the first", rf)
	}
	if got := s.Image().Removals(1); !slices.Equal(got, []Removal{{Shard: 1, Topic: id, Index: 0, Move: move.ID}}) {
		t.Fatalf("%+v", got)
	}
	if r := do(&FinishMove{Topic: id, Index: 0, Move: move.ID, EpochBase: 40}); r.Err == nil {
		t.Fatal("a move was finished twice")
	}
	if r := do(&RestartMove{Topic: id, Index: 0, Move: move.ID}); r.Err == nil {
		t.Fatal("a finished move was restarted")
	}
}

func TestMoveIsCancelled(t *testing.T) {
	s, do, id := moveCluster(t)
	if r := do(&ChangeMoves{Changes: []MoveChange{{id, 0, 0}}}); r.Errors[0] == nil || r.Errors[0].Code != CodeNoReassignment {
		t.Fatalf("cancelled what was not under way: %+v", r)
	}
	do(&ChangeMoves{Changes: []MoveChange{{id, 0, 2}}})
	first := s.Image().Partition(id, 0).Move.ID
	do(&ChangeMoves{Changes: []MoveChange{{id, 0, 3}}}) // in its place
	second := s.Image().Partition(id, 0).Move
	if second.ID == first || second.To != 3 {
		t.Fatalf("%+v", second)
	}
	if r := do(&RestartMove{Topic: id, Index: 0, Move: second.ID}); r.Err != nil {
		t.Fatal(r.Err)
	}
	third := s.Image().Partition(id, 0).Move
	if third.ID == second.ID || third.To != 3 || third.Restarts != 1 {
		t.Fatalf("%+v", third)
	}
	do(&ChangeMoves{Changes: []MoveChange{{id, 0, 1}}}) // where it is
	if p := s.Image().Partition(id, 0); p.Move != nil || p.Shard != 1 || s.Image().Shard(1).ModIndex != s.Image().Index() {
		t.Fatalf("%+v", p)
	}
	if got := s.Image().Removals(2); !slices.Equal(got, []Removal{{Shard: 2, Topic: id, Move: first}}) {
		t.Fatalf("%+v", got)
	}
	want := []Removal{{Shard: 3, Topic: id, Move: second.ID}, {Shard: 3, Topic: id, Move: third.ID}}
	if got := s.Image().Removals(3); !slices.Equal(got, want) {
		t.Fatalf("%+v", got)
	}
	do(&ConfirmRemovals{Removals: want[:1]})
	if got := s.Image().Removals(3); !slices.Equal(got, want[1:]) {
		t.Fatalf("%+v", got)
	}
}

func TestTopicIsDeletedWhileItMoves(t *testing.T) {
	s, do, id := moveCluster(t)
	do(&ChangeMoves{Changes: []MoveChange{{id, 0, 2}, {id, 1, 3}}})
	move := s.Image().Partition(id, 0).Move.ID
	do(&DeleteTopics{IDs: []TopicID{id}})
	if n := s.Image().MoveCount(); n != 0 {
		t.Fatalf("%d moves of no topic", n)
	}
	if got := s.Image().Removals(2); !slices.Equal(got, []Removal{{Shard: 2, Topic: id, Move: move}}) {
		t.Fatalf("%+v", got)
	}
	if got := s.Image().Removals(1); len(got) != 2 {
		t.Fatalf("%+v", got)
	}
}
