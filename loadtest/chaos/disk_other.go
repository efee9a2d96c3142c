//go:build !linux

package chaos

import "errors"

func (d disk) fill(int64) error { return errors.ErrUnsupported }
