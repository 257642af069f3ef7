package depotctl

import (
	"fmt"
	"time"

	"github.com/depotctl/depot/bus"
)

// tokensCommand groups the commands about tokens.
type tokensCommand struct {
	Create createToken `cmd:"" help:"Make a token. It is printed once and stored nowhere."`
	List   listTokens  `cmd:"" help:"List tokens, without their secrets."`
	Revoke revokeToken `cmd:"" help:"End a token and every connection that it opened."`
}

type createToken struct {
	output
	Name       string        `arg:"" help:"Name: 1 to 63 of a-z, 0-9 and -."`
	Role       bus.Role      `help:"user: everything in the organization; ci: builds in one project; agent: a cloud-agent." enum:"user,ci,agent" default:"user"`
	Project    string        `help:"The one project of a ci token." placeholder:"NAME"`
	Connection string        `help:"The connection of an agent token." placeholder:"NAME"`
	Expires    time.Duration `help:"Life of the token (default: without end)." placeholder:"720h"`
}

// createdToken is what -o json prints: the only time that the text is seen.
type createdToken struct {
	Token bus.TokenView `json:"token"`
	Text  string        `json:"text"`
}

// Run makes the token here and sends only its hash.
func (c *createToken) Run(a *app) error {
	if (c.Role == bus.RoleCI) != (c.Project != "") || (c.Role == bus.RoleAgent) != (c.Connection != "") {
		return failf(ExitUsage, "a ci token needs --project, an agent token --connection, and only they do")
	}
	if c.Expires < 0 {
		return failf(ExitUsage, "--expires is %s, want a time in the future", c.Expires)
	}
	token := bus.NewToken()
	request := bus.TokenCreate{
		Token: token.ID, Hash: token.Hash(), Name: c.Name, Role: c.Role, Project: c.Project, Connection: c.Connection,
	}
	if c.Expires > 0 {
		request.ExpiresAt = time.Now().Add(c.Expires).UTC().Truncate(time.Second)
	}
	view, err := ask(a, "create token", bus.CreateToken, request)
	if err != nil {
		return err
	}
	return c.print(a.stdout, createdToken{Token: view, Text: token.Reveal()}, func(*table) {
		fmt.Fprintf(a.stderr, "created token %s (%s); it is shown only now:\n", view.Name, view.Token)
		fmt.Fprintln(a.stdout, token.Reveal())
	})
}

type listTokens struct{ output }

// Run lists the tokens.
func (c *listTokens) Run(a *app) error {
	list, err := ask(a, "list tokens", bus.ListTokens, bus.Empty{})
	if err != nil {
		return err
	}
	return c.print(a.stdout, list.Tokens, func(t *table) {
		t.row("NAME", "ID", "ROLE", "FOR", "CREATED", "EXPIRES")
		for _, k := range list.Tokens {
			scope := string(k.Project)
			if k.Role == bus.RoleAgent {
				scope = string(k.Connection)
			}
			t.row(k.Name, k.Token, k.Role, scope, ago(k.CreatedAt), when(k.ExpiresAt, "never"))
		}
	})
}

type revokeToken struct {
	Token string `arg:"" help:"Id of the token (tok-…), as in tokens list."`
}

// Run revokes the token.
func (c *revokeToken) Run(a *app) error {
	id := bus.TokenID(c.Token)
	if token, err := bus.ParseToken(c.Token); err == nil { // whoever found a token can end it
		id = token.ID
	}
	if _, err := ask(a, "revoke token", bus.RevokeToken, bus.TokenRef{Token: id}); err != nil {
		return err
	}
	fmt.Fprintf(a.stdout, "revoked token %s\n", id)
	return nil
}
