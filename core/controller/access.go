package controller

// Defaults returns what topics get when their creator does not say.
func (c *Controller) Defaults() Defaults { return c.o.Defaults.withDefaults() }
