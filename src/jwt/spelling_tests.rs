//! That nothing which some server takes for a token's place hides a second token.

use proptest::prelude::*;

use super::tests::{NOW, Stage, claims, issuer, parts};
use crate::plan::jwt::Place;

#[test]
fn a_cookie_that_some_servers_read_as_the_tokens_is_a_second_token() {
    let stages = ["session", "se_ssion"].map(|name| Stage::new(vec![issuer(Place::Cookie(name.into()))]));
    let latin1 = |text: &str| {
        let bytes: Vec<u8> = text.chars().map(|one| u8::try_from(one).unwrap()).collect();
        let mut parts = parts("/", &[]);
        parts.headers.insert("cookie", http::HeaderValue::from_bytes(&bytes).unwrap());
        parts
    };
    for (at, forged) in [
        (0, "a=b, session=f"),
        (0, "a=b,session=f"),
        (0, "SESSION=f"),
        (0, "%73ession=f"),
        (0, "session[]=f"),
        (0, "session[a]=f"),
        (0, "session%00x=f"),
        (0, "session\u{a0}=f"),
        (0, "\u{a0}session=f"),
        (0, "+session=f"),
        (0, "session"),
        (1, "se.ssion=f"),
        (1, "se%20ssion=f"),
        (1, "se[ssion=f"),
    ] {
        let (stage, name) = (&stages[at], ["session", "se_ssion"][at]);
        let good = format!("{name}={}", stage.token(&claims()));
        assert!(stage.judge(&latin1(&good), NOW).is_ok());
        for cookie in [format!("{forged}; {good}"), format!("{good}; {forged}"), forged.to_owned()] {
            assert!(stage.judge(&latin1(&cookie), NOW).is_err(), "{cookie}");
        }
    }
    for beside in
        ["session.sig=x", "session-id=x", "session_id=x", "mysession=x", "x=session", "a=b,c", "sess=x, ion=y"]
    {
        let good = format!("{beside}; session={}", stages[0].token(&claims()));
        assert_eq!(stages[0].judge(&latin1(&good), NOW).map(|held| held.len()), Ok(1), "{beside}");
    }
}

#[test]
fn a_parameter_or_field_that_some_servers_read_as_the_tokens_is_a_second_token() {
    let stages = ["access_token", "access.token"].map(|name| Stage::new(vec![issuer(Place::Query(name.into()))]));
    let field = Stage::new(vec![issuer(Place::Header(http::HeaderName::from_static("x-token")))]);
    for (at, forged) in [
        (0, "access.token=f"),
        (0, "access_token[]=f"),
        (0, "access_token[0]=f"),
        (0, "access%5Ftoken%5B%5D=f"),
        (0, "Access_Token=f"),
        (0, "+access_token=f"),
        (0, "access+token=f"),
        (0, "access%20token=f"),
        (0, "access[token=f"),
        (0, "access_token%00=f"),
        (0, "x=y;access.token=f"),
        (1, "access_token=f"),
    ] {
        let (stage, name) = (&stages[at], ["access_token", "access.token"][at]);
        let good = format!("{name}={}", stage.token(&claims()));
        assert!(stage.judge(&parts(&format!("/?{good}"), &[]), NOW).is_ok());
        for query in [format!("{forged}&{good}"), format!("{good}&{forged}"), forged.to_owned()] {
            assert!(stage.judge(&parts(&format!("/?{query}"), &[]), NOW).is_err(), "{query}");
        }
    }
    for beside in ["access_token_type=x", "access-token=x", "xaccess_token=1", "a=access_token"] {
        let good = format!("{beside}&access_token={}", stages[0].token(&claims()));
        assert_eq!(stages[0].judge(&parts(&format!("/?{good}"), &[]), NOW).map(|held| held.len()), Ok(1), "{beside}");
    }
    let good = field.token(&claims());
    for (name, fine) in [("x_token", false), ("x.token", false), ("x~token", false), ("x-tokens", true)] {
        assert_eq!(field.judge(&parts("/", &[("x-token", &good), (name, "f")]), NOW).is_ok(), fine, "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Every way of writing the name of a token's cookie or parameter, in letter case and percent-encoding, is refused
    /// beside it, and so is the name itself.
    #[test]
    fn no_spelling_of_its_name_hides_a_second_token(how in prop::collection::vec(0..4_u8, 12), first in any::<bool>()) {
        let stage = Stage::new(vec![issuer(Place::Cookie("access_token".into())), issuer(Place::Query("access_token".into()))]);
        let spell = |(byte, how): (u8, &u8)| match how {
            1 => format!("%{byte:02x}"),
            2 => format!("%{byte:02X}"),
            3 => char::from(byte.to_ascii_uppercase()).to_string(),
            _ => char::from(byte).to_string(),
        };
        let name: String = "access_token".bytes().zip(&how).map(spell).collect();
        let good = format!("access_token={}", stage.token(&claims()));
        let forged = format!("{name}=forged");
        let (one, other) = if first { (&forged, &good) } else { (&good, &forged) };
        prop_assert!(stage.judge(&parts("/", &[("cookie", &format!("{one}; {other}"))]), NOW).is_err(), "{}", name);
        prop_assert!(stage.judge(&parts(&format!("/?{one}&{other}"), &[]), NOW).is_err(), "{}", name);
    }
}
