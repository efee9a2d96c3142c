package broker

import (
	"sync"

	"sluice/core/meta"
)

// settingsCache keeps the effective settings of topics, as working them out for each request would cost more than the request. An entry is good for one
// state of the topic and of the defaults; entries of deleted topics go when there are too many.
type settingsCache struct {
	mu struct {
		sync.RWMutex
		byTopic map[meta.TopicID]cachedSettings
	}
}

// settingsCacheMax bounds the cache; it begins anew when it is full.
const settingsCacheMax = 10_000

type cachedSettings struct {
	topicIndex, defaultsIndex uint64
	settings                  *meta.TopicSettings
}

// of returns the settings of a topic; nobody changes them.
func (c *settingsCache) of(image *meta.Image, t *meta.Topic) *meta.TopicSettings {
	c.mu.RLock()
	e, ok := c.mu.byTopic[t.ID]
	c.mu.RUnlock()
	if ok && e.topicIndex == t.ModIndex && e.defaultsIndex == image.DefaultsIndex() {
		return e.settings
	}
	s := image.TopicSettings(t)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.byTopic == nil || len(c.mu.byTopic) >= settingsCacheMax {
		c.mu.byTopic = make(map[meta.TopicID]cachedSettings)
	}
	c.mu.byTopic[t.ID] = cachedSettings{topicIndex: t.ModIndex, defaultsIndex: image.DefaultsIndex(), settings: &s}
	return &s
}
