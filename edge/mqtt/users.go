package mqtt

import (
	"bytes"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"go.yaml.in/yaml/v3"

	"sluice/edge/ingest"
)

// User is who a device is, and what it may do. Without filters it may do everything. ${client} and ${user} in a filter stand
// for the device's own.
type User struct {
	Name      string   `yaml:"name"`
	Password  string   `yaml:"password"` // as HashPassword writes it; empty: only with a certificate of that common name
	Publish   []string `yaml:"publish"`
	Subscribe []string `yaml:"subscribe"`
}

// Users decides who may connect.
type Users struct {
	anonymous bool
	byName    map[string]*User

	mu    sync.Mutex
	known map[string][32]byte // user to the digest of the password that was right: hashing is slow on purpose, reconnects are many
}

// anonymous may do everything.
var anyone = &User{}

// LoadUsers reads a file of users: a list under "users". An empty name means no file.
func LoadUsers(file string, anonymous bool) (*Users, error) {
	u := &Users{anonymous: anonymous, byName: map[string]*User{}, known: map[string][32]byte{}}
	if file == "" {
		return u, nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read users: %w", err)
	}
	var list struct {
		Users []*User `yaml:"users"`
	}
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(&list); err != nil {
		return nil, fmt.Errorf("read users in %s: %w", file, err)
	}
	for i, user := range list.Users {
		if err := user.validate(); err != nil {
			return nil, fmt.Errorf("read users in %s: users[%d].%w", file, i, err)
		}
		if u.byName[user.Name] != nil {
			return nil, fmt.Errorf("read users in %s: users[%d].name: %q is there twice", file, i, user.Name)
		}
		u.byName[user.Name] = user
	}
	return u, nil
}

func (u *User) validate() error {
	if u.Name == "" {
		return errors.New("name: must not be empty")
	}
	if _, err := parseHash(u.Password); u.Password != "" && err != nil {
		return fmt.Errorf("password: %w", err)
	}
	for name, filters := range map[string][]string{"publish": u.Publish, "subscribe": u.Subscribe} {
		for _, f := range filters {
			if err := ingest.ValidFilter(f); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return nil
}

// The hash of a password: PBKDF2 with SHA-256, as $pbkdf2-sha256$iterations$salt$key in base64.
const (
	hashPrefix     = "$pbkdf2-sha256$"
	hashIterations = 100_000 // about 30 ms on a small box, once per user and start
	hashKeyBytes   = 32
)

// HashPassword returns what a file of users holds for a password.
func HashPassword(password string) (string, error) {
	salt := make([]byte, 16)
	rand.Read(salt)
	key, err := pbkdf2.Key(sha256.New, password, salt, hashIterations, hashKeyBytes)
	if err != nil {
		return "", fmt.Errorf("hash password: %w", err)
	}
	e := base64.RawStdEncoding
	return fmt.Sprintf("%s%d$%s$%s", hashPrefix, hashIterations, e.EncodeToString(salt), e.EncodeToString(key)), nil
}

type passwordHash struct {
	iterations int
	salt, key  []byte
}

func parseHash(text string) (h passwordHash, err error) {
	rest, ok := strings.CutPrefix(text, hashPrefix)
	parts := strings.Split(rest, "$")
	if !ok || len(parts) != 3 {
		return h, errors.New("want $pbkdf2-sha256$iterations$salt$key, salt and key in base64 without padding")
	}
	if h.iterations, err = strconv.Atoi(parts[0]); err != nil || h.iterations < 1 || h.iterations > 10_000_000 {
		return h, errors.New("the number of iterations is not one from 1 to 10000000")
	}
	if h.salt, err = base64.RawStdEncoding.DecodeString(parts[1]); err != nil {
		return h, fmt.Errorf("salt: %w", err)
	}
	if h.key, err = base64.RawStdEncoding.DecodeString(parts[2]); err != nil || len(h.key) < 16 {
		return h, errors.New("key: want at least 16 bytes in base64")
	}
	return h, nil
}

// login returns the user, or nil. A certificate's name counts as a password when the device names no other user.
func (u *Users) login(name string, password []byte, certificate string) *User {
	if certificate != "" && (name == "" || name == certificate) {
		if user := u.byName[certificate]; user != nil {
			return user
		}
	}
	user := u.byName[name]
	if name == "" || user == nil && len(u.byName) == 0 {
		if u.anonymous {
			return anyone
		}
		return nil
	}
	if user == nil || user.Password == "" || !u.right(user, password) {
		return nil
	}
	return user
}

// Login is for HTTP's basic authentication; nil means no.
func (u *Users) Login(name string, password []byte) *User { return u.login(name, password, "") }

func (u *Users) right(user *User, password []byte) bool {
	digest := sha256.Sum256(append([]byte(user.Password), password...))
	u.mu.Lock()
	known, ok := u.known[user.Name]
	u.mu.Unlock()
	if ok && subtle.ConstantTimeCompare(known[:], digest[:]) == 1 {
		return true
	}
	h, err := parseHash(user.Password)
	if err != nil {
		return false
	}
	key, err := pbkdf2.Key(sha256.New, string(password), h.salt, h.iterations, len(h.key))
	if err != nil || subtle.ConstantTimeCompare(key, h.key) != 1 {
		return false
	}
	u.mu.Lock()
	u.known[user.Name] = digest
	u.mu.Unlock()
	return true
}

// MayPublish says whether the user may publish to a topic; client is its client id.
func (u *User) MayPublish(client, topic string) bool { return u.may(u.Publish, client, topic) }

// MaySubscribe says whether the user may subscribe to a filter: one of its own filters must cover it.
func (u *User) MaySubscribe(client, filter string) bool {
	return len(u.Publish)+len(u.Subscribe) == 0 || u.covers(u.Subscribe, client, filter)
}

func (u *User) may(filters []string, client, topic string) bool {
	if len(u.Publish)+len(u.Subscribe) == 0 {
		return true
	}
	for _, f := range filters {
		if f, ok := u.own(f, client); ok && ingest.Match(f, topic) {
			return true
		}
	}
	return false
}

// covers: a + in the wanted filter needs a + or # in the allowed one, a # needs a #.
func (u *User) covers(filters []string, client, wanted string) bool {
	for _, f := range filters {
		if f, ok := u.own(f, client); ok && covers(f, wanted) {
			return true
		}
	}
	return false
}

func covers(allowed, wanted string) bool {
	for {
		a, aRest, aMore := strings.Cut(allowed, "/")
		w, wRest, wMore := strings.Cut(wanted, "/")
		switch {
		case a == "#":
			return true
		case w == "#", a != "+" && a != w:
			return false
		case !aMore || !wMore:
			return !aMore && !wMore || !wMore && aRest == "#"
		}
		allowed, wanted = aRest, wRest
	}
}

// own fills the device's names into a filter. A name with a wildcard or a slash would widen it: then the filter is not for it.
func (u *User) own(filter, client string) (string, bool) {
	for place, name := range map[string]string{"${client}": client, "${user}": u.Name} {
		if strings.Contains(filter, place) {
			if name == "" || strings.ContainsAny(name, "+#/") {
				return "", false
			}
			filter = strings.ReplaceAll(filter, place, name)
		}
	}
	return filter, true
}
