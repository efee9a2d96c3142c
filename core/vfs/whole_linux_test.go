package vfs

import "testing"

func TestKernelsThatTellOfErrors(t *testing.T) {
	for release, want := range map[string]bool{
		"5.8.0": true, "5.7.19": false, "6.1.0-13-amd64": true, "4.19.0": false, "5.10-rc1": true, "5.15.0": true, "10.0": true, "nonsense": false, "": false,
	} {
		if got := tellsOfErrors(release); got != want {
			t.Errorf("%q: %v", release, got)
		}
	}
}
