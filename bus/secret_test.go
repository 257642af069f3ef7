package bus

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// everyPrint is a value in every form in which a program may print, log or marshal it by accident.
func everyPrint(t *testing.T, v any) string {
	t.Helper()
	var b bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%10.3s", "%!"} {
		fmt.Fprintf(&b, verb+"\n", v)
		fmt.Fprintf(&b, verb+"\n", &v)
		fmt.Fprintf(&b, verb+"\n", struct{ Inner any }{v})
		fmt.Fprintf(&b, verb+"\n", []any{v})
		fmt.Fprintf(&b, verb+"\n", map[string]any{"k": v})
	}
	fmt.Fprintln(&b, v, errors.New(fmt.Sprint(v)), fmt.Errorf("token %v", v))
	for _, h := range []slog.Handler{slog.NewTextHandler(&b, nil), slog.NewJSONHandler(&b, nil)} {
		log := slog.New(h)
		log.Info("value", "a", v, slog.Group("g", "b", v))
		log.Info("inside", "c", struct{ Inner any }{v}, "d", []any{v})
	}
	return b.String()
}

func TestSecrets_NeverPrint(t *testing.T) {
	t.Parallel()
	token := NewToken()
	nonce := LaunchNonce(token, NewMachineID(), 3)
	tokenSecret := strings.Split(token.Reveal(), "_")[2]
	nonceSecret := strings.Split(nonce.Reveal(), ".")[3]
	for name, c := range map[string]struct {
		value  any
		secret string
		shown  string // what people need to tell one from another
	}{
		"secret":           {NewSecret("correct horse"), "correct horse", "[redacted]"},
		"token":            {token, tokenSecret, string(token.ID)},
		"pointer to token": {&token, tokenSecret, string(token.ID)},
		"nonce":            {nonce, nonceSecret, string(nonce.Machine)},
		"configuration":    {Config{Token: token}, tokenSecret, string(token.ID)},
		"machine's own":    {Config{Nonce: nonce}, nonceSecret, string(nonce.Machine)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			printed := everyPrint(t, c.value)
			require.Contains(t, printed, c.shown)
			require.NotContains(t, printed, c.secret)
			require.NotContains(t, strings.ToLower(printed), fmt.Sprintf("%x", c.secret), "in hexadecimal")
		})
	}
	for _, v := range []any{NewSecret("correct horse"), token, nonce} {
		data, err := json.Marshal(map[string]any{"v": v})
		require.NoError(t, err)
		require.Contains(t, string(data), redacted)
		require.NotContains(t, string(data), tokenSecret)
		require.NotContains(t, string(data), nonceSecret)
		require.NotContains(t, string(data), "horse")
	}
	require.Equal(t, "correct horse", NewSecret("correct horse").Reveal())
	require.True(t, NewSecret("").IsZero())
	require.False(t, NewSecret("x").IsZero())
	// User data is the one value whose JSON must hold the secret: it prints and logs without it.
	data := UserData{Machine: nonce.Machine, Attempt: 3, Nonce: nonce.Reveal()}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("rendered", "data", data, "pointer", &data)
	for _, printed := range []string{fmt.Sprintf("%v %+v %#v %s %q %v", data, data, data, data, data, []any{&data}), log.String()} {
		require.Contains(t, printed, string(nonce.Machine))
		require.NotContains(t, printed, nonceSecret)
	}
	var read struct{ Secret Secret }
	require.Error(t, json.Unmarshal([]byte(`{"Secret":"[redacted]"}`), &read), "what was redacted does not come back as a secret")
}

func TestToken_SurvivesItsTextAndOnlyThat(t *testing.T) {
	t.Parallel()
	token := NewToken()
	got, err := ParseToken("  " + token.Reveal() + "\n")
	require.NoError(t, err)
	require.Equal(t, token, got)
	require.Equal(t, token.Hash(), got.Hash())
	require.Regexp(t, `^[0-9a-f]{64}$`, token.Hash())
	require.NotContains(t, token.Reveal(), token.Hash())
	require.NotEqual(t, token.Hash(), NewToken().Hash())
	require.True(t, Token{}.IsZero())
	require.False(t, token.IsZero())

	text := token.Reveal()
	for i := range text { // one wrong character anywhere
		for _, c := range []byte{'0', 'x', '_', '.', ' '} {
			bad := text[:i] + string(c) + text[i+1:]
			if strings.TrimSpace(bad) == text || bad == text {
				continue
			}
			_, err := ParseToken(bad)
			require.Error(t, err, bad)
			require.NotContains(t, err.Error(), text[30:60], "the error repeats the secret")
		}
	}
	for _, bad := range []string{"", "depot", "depot___", text + "0", text[1:], text[:len(text)-1], strings.ToUpper(text), text + "_" + text} {
		_, err := ParseToken(bad)
		require.Error(t, err, bad)
	}
	// A checksum anybody can make does not make a token of text in another form.
	body := "depot_" + string(token.ID) + "_" + strings.Repeat("*", 64)
	_, err = ParseToken(body + "_" + checksum(body))
	require.Error(t, err)
	body = "depot_tok-short_" + strings.Repeat("0", 64)
	_, err = ParseToken(body + "_" + checksum(body))
	require.Error(t, err)
}

func TestNonce_IsTheSameForTheSameAttemptAndForNothingElse(t *testing.T) {
	t.Parallel()
	token, machine := NewToken(), NewMachineID()
	nonce := LaunchNonce(token, machine, 1)
	again, err := ParseToken(token.Reveal())
	require.NoError(t, err)
	require.Equal(t, nonce, LaunchNonce(again, machine, 1), "another replica of the agent derives the same")
	seen := map[string]bool{nonce.Hash(): true}
	for _, other := range []Nonce{LaunchNonce(token, machine, 2), LaunchNonce(token, machine, 11), LaunchNonce(token, NewMachineID(), 1), LaunchNonce(NewToken(), machine, 1)} {
		require.False(t, seen[other.Hash()])
		seen[other.Hash()] = true
	}
	got, err := ParseNonce(nonce.Reveal())
	require.NoError(t, err)
	require.Equal(t, nonce, got)
	require.Panics(t, func() { LaunchNonce(Token{}, machine, 1) })
	secret := nonce.secret
	for _, bad := range []string{
		"", "nonce", nonce.Reveal() + "x", nonce.Reveal() + ".x", strings.Replace(nonce.Reveal(), ".1.", ".01.", 1), strings.Replace(nonce.Reveal(), ".1.", ".+1.", 1),
		"nonce." + string(machine) + ".0." + secret, "nonce." + string(machine) + ".-1." + secret, "nonce.mch-x.1." + secret, "nonce." + string(machine) + ".1x." + secret,
		token.Reveal(),
	} {
		got, err := ParseNonce(bad)
		require.Error(t, err, bad)
		require.Zero(t, got)
	}
}

func TestRegistrationDigest_ChangesWithEveryFieldThatMustNotBeSwapped(t *testing.T) {
	t.Parallel()
	base := MachineRegister{
		Attempt: 1, IdentityKey: "identity", UserKey: "user", Challenge: "challenge", Attestation: Attestation{Kind: "aws", Document: "document"},
	}
	machine := MachineID("mch-aaaaaaaaaaaaaaaa")
	digest := func(m MachineID, change func(*MachineRegister)) string {
		r := base
		change(&r)
		return string(RegistrationDigest(m, r))
	}
	want := digest(machine, func(*MachineRegister) {})
	require.Len(t, want, 32)
	require.Equal(t, want, digest(machine, func(r *MachineRegister) { r.Signature = "it cannot sign itself" }))
	for name, got := range map[string]string{
		"machine":   digest("mch-bbbbbbbbbbbbbbbb", func(*MachineRegister) {}),
		"attempt":   digest(machine, func(r *MachineRegister) { r.Attempt = 2 }),
		"identity":  digest(machine, func(r *MachineRegister) { r.IdentityKey = "x" }),
		"user":      digest(machine, func(r *MachineRegister) { r.UserKey = "x" }),
		"challenge": digest(machine, func(r *MachineRegister) { r.Challenge = "x" }),
		"kind":      digest(machine, func(r *MachineRegister) { r.Attestation.Kind = "nonce" }),
		"document":  digest(machine, func(r *MachineRegister) { r.Attestation.Document = "x" }),
		"moved":     digest(machine, func(r *MachineRegister) { r.IdentityKey, r.UserKey = "identityuser", "" }),
		"punctuated": digest(machine, func(r *MachineRegister) {
			r.Challenge, r.IdentityKey = "challenge,8:identity", "" // as if the separators were part of a field
		}),
	} {
		require.NotEqual(t, want, got, name)
	}
}
