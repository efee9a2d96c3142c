// Package e2e tests Sluice as its users have it: the built binaries as processes, killed and started again, real recordings, and the page
// in a real browser. Its tests need the build tag e2e and what `make build` leaves in bin (`make e2e` sees to both).
package e2e
