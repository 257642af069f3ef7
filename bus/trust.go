package bus

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
)

// Trust is the key material of an installation. Whoever holds the operator's signing key owns everything.
//
// The seeds of all accounts are thrown away at birth: the operator's signing key signs accounts, and per kind of
// account one signing key signs its users, so that no key can make users elsewhere.
type Trust struct {
	operator string        // JWT
	identity nkeys.KeyPair // of the operator; nil once its file was moved away
	signer   nkeys.KeyPair // of accounts
	accounts map[string]infrastructure
	connSign nkeys.KeyPair // of users in connection accounts
	orgSign  nkeys.KeyPair // of users in organization accounts
	callout  nkeys.KeyPair // the user of AUTH that answers callouts
	curve    nkeys.KeyPair // to which the server encrypts them
	sentinel string        // JWT of the user that routes bare tokens to the callout; public
}

// infrastructure is one of the four accounts that every installation has.
type infrastructure struct {
	public string
	signer nkeys.KeyPair // of its users
}

const (
	accountSYS     = "SYS"
	accountAUTH    = "AUTH"
	accountCONTROL = "CONTROL"
	accountREFUSED = "REFUSED"
)

var infrastructureNames = []string{accountSYS, accountAUTH, accountCONTROL, accountREFUSED}

// sentinelName tells users that came through the callout: the server keeps the sentinel's name as their name tag.
const sentinelName = "sentinel"

// NewTrust makes the key material of a new installation.
func NewTrust() (*Trust, error) {
	var m maker
	t := &Trust{
		identity: m.key(nkeys.CreateOperator),
		signer:   m.key(nkeys.CreateOperator),
		accounts: map[string]infrastructure{},
		connSign: m.key(nkeys.CreateAccount),
		orgSign:  m.key(nkeys.CreateAccount),
		callout:  m.key(nkeys.CreateUser),
		curve:    m.key(nkeys.CreateCurveKeys),
	}
	for _, name := range infrastructureNames {
		t.accounts[name] = infrastructure{public: m.public(m.key(nkeys.CreateAccount)), signer: m.key(nkeys.CreateAccount)}
	}
	if m.err != nil {
		return nil, fmt.Errorf("make keys: %w", m.err)
	}
	operator := jwt.NewOperatorClaims(m.public(t.identity))
	operator.Name = "depot"
	operator.SigningKeys.Add(m.public(t.signer))
	operator.SystemAccount = t.accounts[accountSYS].public
	operator.StrictSigningKeyUsage = true
	t.operator = m.encode(operator, t.identity)

	sentinel := jwt.NewUserClaims(m.public(m.key(nkeys.CreateUser)))
	sentinel.Name = sentinelName
	sentinel.BearerToken = true
	sentinel.IssuerAccount = t.accounts[accountAUTH].public
	sentinel.Pub.Deny.Add(">")
	sentinel.Sub.Deny.Add(">")
	t.sentinel = m.encode(sentinel, t.accounts[accountAUTH].signer)
	if m.err != nil {
		return nil, fmt.Errorf("sign operator and sentinel: %w", m.err)
	}
	return t, nil
}

// maker keeps the first error, so that a list of keys reads as a list.
type maker struct{ err error }

func (m *maker) key(create func() (nkeys.KeyPair, error)) nkeys.KeyPair {
	if m.err != nil {
		return nil
	}
	k, err := create()
	m.err = err
	return k
}

func (m *maker) public(k nkeys.KeyPair) string {
	if m.err != nil {
		return ""
	}
	s, err := k.PublicKey()
	m.err = err
	return s
}

func (m *maker) seed(k nkeys.KeyPair) string {
	if m.err != nil {
		return ""
	}
	s, err := k.Seed()
	m.err = err
	return string(s)
}

func (m *maker) encode(c jwt.Claims, k nkeys.KeyPair) string {
	if m.err != nil {
		return ""
	}
	s, err := c.Encode(k)
	m.err = err
	return s
}

// NewAccount makes the public key that names an account. Its seed is thrown away.
func NewAccount() (string, error) {
	k, err := nkeys.CreateAccount()
	if err != nil {
		return "", fmt.Errorf("make account key: %w", err)
	}
	return k.PublicKey()
}

// infrastructureClaims returns the claims of an infrastructure account as this program's table wants them.
func (t *Trust) infrastructureClaims(name string) (*jwt.AccountClaims, error) {
	var m maker
	account := t.accounts[name]
	signer := m.public(account.signer)
	claims := jwt.NewAccountClaims(account.public)
	if name == accountREFUSED {
		claims = tenantClaims(scopeRefused, account.public, name, t.accounts[accountCONTROL].public, signer)
	}
	claims.Name = name
	claims.SigningKeys.Add(signer)
	claims.Limits.LeafNodeConn = 0
	switch name {
	case accountAUTH:
		claims.EnableExternalAuthorization(m.public(t.callout))
		claims.Authorization.AllowedAccounts.Add(jwt.AnyAccount)
		claims.Authorization.XKey = m.public(t.curve)
	case accountCONTROL:
		claims.Exports = controlExports()
		claims.Limits.JetStreamLimits = jwt.JetStreamLimits{
			MemoryStorage: jwt.NoLimit, DiskStorage: jwt.NoLimit, Streams: jwt.NoLimit, Consumer: jwt.NoLimit,
		}
	}
	return claims, m.err
}

// infrastructureJWTs signs the infrastructure accounts' claims: public key to JWT.
func (t *Trust) infrastructureJWTs() (map[string]string, error) {
	jwts := map[string]string{}
	for _, name := range infrastructureNames {
		claims, err := t.infrastructureClaims(name)
		if err != nil {
			return nil, err
		}
		signed, err := claims.Encode(t.signer)
		if err != nil {
			return nil, fmt.Errorf("sign account %s: %w", name, err)
		}
		jwts[claims.Subject] = signed
	}
	return jwts, nil
}

// isInfrastructure reports whether the account is one that no tenant's user may be placed in.
func (t *Trust) isInfrastructure(account string) bool {
	for _, a := range t.accounts {
		if a.public == account {
			return true
		}
	}
	return false
}

// userSigner returns the key that signs users in accounts of the scope.
func (t *Trust) userSigner(scope Scope) (nkeys.KeyPair, error) {
	switch scope {
	case ScopeOrganization:
		return t.orgSign, nil
	case ScopeConnection:
		return t.connSign, nil
	case scopeRefused:
		return t.accounts[accountREFUSED].signer, nil
	case ScopeControl, ScopeAny:
	}
	return nil, fmt.Errorf("scope %q has no accounts of tenants", scope)
}

const (
	trustFile    = "trust.json"
	identityFile = "operator-identity.nk"
)

// storedTrust is the form on disk.
type storedTrust struct {
	Operator string                   `json:"operator"`
	Sentinel string                   `json:"sentinel"`
	Signer   string                   `json:"operator_signing_seed"`
	ConnSign string                   `json:"connection_user_signing_seed"`
	OrgSign  string                   `json:"organization_user_signing_seed"`
	Callout  string                   `json:"callout_user_seed"`
	Curve    string                   `json:"callout_curve_seed"`
	Accounts map[string]storedAccount `json:"accounts"`
}

type storedAccount struct {
	Public string `json:"public"`
	Signer string `json:"user_signing_seed"`
}

// Save writes the key material into dir, readable by its owner only. The operator's identity key goes to a file of its
// own, which nothing needs afterwards: move it to a safe place.
func (t *Trust) Save(dir string) error {
	var m maker
	stored := storedTrust{
		Operator: t.operator, Sentinel: t.sentinel, Accounts: map[string]storedAccount{},
		Signer: m.seed(t.signer), ConnSign: m.seed(t.connSign), OrgSign: m.seed(t.orgSign), Callout: m.seed(t.callout), Curve: m.seed(t.curve),
	}
	for name, a := range t.accounts {
		stored.Accounts[name] = storedAccount{Public: a.public, Signer: m.seed(a.signer)}
	}
	data, err := json.MarshalIndent(stored, "", "  ")
	if err := errors.Join(m.err, err, os.MkdirAll(dir, 0o700)); err != nil {
		return fmt.Errorf("save trust: %w", err)
	}
	if t.identity != nil {
		if err := writePrivate(filepath.Join(dir, identityFile), []byte(m.seed(t.identity)+"\n")); err != nil {
			return fmt.Errorf("save operator identity: %w", errors.Join(m.err, err))
		}
	}
	if err := writePrivate(filepath.Join(dir, trustFile), append(data, '\n')); err != nil {
		return fmt.Errorf("save trust: %w", err)
	}
	return nil
}

// writePrivate replaces a file as a whole: after a crash there is the old content or the new, never a part.
func writePrivate(path string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}()
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return f.Close()
}

// LoadTrust reads what Save wrote. It is fs.ErrNotExist if there is nothing, and refuses a file that others can read.
func LoadTrust(dir string) (*Trust, error) {
	path := filepath.Join(dir, trustFile)
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("load trust: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("load trust: %s is readable by others (mode %#o): chmod 600 it, and think about who has read it", path, info.Mode().Perm())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("load trust: %w", err)
	}
	var stored storedTrust
	if err := json.Unmarshal(data, &stored); err != nil {
		return nil, fmt.Errorf("load trust: %s: %w", path, err)
	}
	t, err := stored.open()
	if err != nil {
		return nil, fmt.Errorf("load trust: %s: %w", path, err)
	}
	seed, err := os.ReadFile(filepath.Join(dir, identityFile))
	if errors.Is(err, fs.ErrNotExist) {
		return t, nil
	}
	if err != nil {
		return nil, fmt.Errorf("load operator identity: %w", err)
	}
	if t.identity, err = nkeys.ParseDecoratedNKey(seed); err != nil {
		return nil, fmt.Errorf("load operator identity: %w", err)
	}
	return t, nil
}

func (s storedTrust) open() (*Trust, error) {
	var m maker
	key := func(seed string) nkeys.KeyPair {
		return m.key(func() (nkeys.KeyPair, error) { return nkeys.FromSeed([]byte(seed)) })
	}
	t := &Trust{
		operator: s.Operator, sentinel: s.Sentinel, accounts: map[string]infrastructure{},
		signer: key(s.Signer), connSign: key(s.ConnSign), orgSign: key(s.OrgSign), callout: key(s.Callout),
		curve: m.key(func() (nkeys.KeyPair, error) { return nkeys.FromCurveSeed([]byte(s.Curve)) }),
	}
	for _, name := range infrastructureNames {
		a, ok := s.Accounts[name]
		if !ok {
			return nil, fmt.Errorf("account %s is missing", name)
		}
		t.accounts[name] = infrastructure{public: a.Public, signer: key(a.Signer)}
	}
	return t, m.err
}

// infrastructureUser signs a user of one of the API server's own accounts. It is made anew by every process and never
// stored; only the key of the callout user is fixed, because AUTH's claims name it.
func (t *Trust) infrastructureUser(account string) (signed string, key nkeys.KeyPair, err error) {
	var m maker
	key = t.callout
	if account != accountAUTH {
		key = m.key(nkeys.CreateUser)
	}
	claims := jwt.NewUserClaims(m.public(key))
	claims.Name = string(RoleAPI)
	claims.IssuerAccount = t.accounts[account].public
	switch account {
	case accountAUTH:
		claims.Sub.Allow.Add(calloutSubject, inboxPrefix(string(RoleAPI))+".>")
		claims.Resp = &jwt.ResponsePermission{MaxMsgs: 1, Expires: 10 * time.Second}
		claims.Pub.Deny.Add(">")
	case accountSYS:
		claims.Pub.Allow.Add(claimsUpdate, claimsDelete, claimsList, fmt.Sprintf(claimsLookup, "*"))
		claims.Sub.Allow.Add(inboxPrefix(string(RoleAPI)) + ".>")
	}
	signed = m.encode(claims, t.accounts[account].signer)
	return signed, key, m.err
}
