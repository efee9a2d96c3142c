//go:build !linux

package vfs

func systemBoot() string { return "" }
