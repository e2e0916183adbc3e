//! Says in words what a list of rules does to a name, for `adit dns`.

use super::judge::Prepared;
use crate::config::{Action, Rule};

/// Tells what becomes of a name, in lower case and without a final dot: by which rule, and which rules before that one may
/// decide otherwise, by what is known only of a connection: its address, its port, its transport.
pub fn explain(list: &[Rule], name: &str) -> String {
    let mut before = Vec::new();
    for (at, rule) in list.iter().enumerate() {
        let prepared = Prepared::new(rule);
        let number = at + 1;
        if prepared.fit_name(name).is_some() {
            if prepared.is_about_all() {
                return told(
                    way(rule.action),
                    &format!("rule {number}, `{rule}`"),
                    &before,
                );
            }
            before.push(format!("rule {number}, `{rule}`, has its ports"));
        } else if prepared.has_networks() {
            before.push(format!("rule {number}, `{rule}`, where its address fits"));
        }
    }
    let by = if list.is_empty() {
        "there is no rule"
    } else {
        "no rule is about it"
    };
    told(way(Action::Tunnel), by, &before)
}

fn told(way: &str, by: &str, before: &[String]) -> String {
    if before.is_empty() {
        format!("{way} ({by})")
    } else {
        format!("{way} ({by}), unless before it {}", before.join("; "))
    }
}

const fn way(action: Action) -> &'static str {
    match action {
        Action::Tunnel => "through the tunnel",
        Action::Direct => "directly, resolved by this host's own resolver",
        Action::Block => "blocked",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse_rule;

    #[test]
    fn name_is_told_its_rule_and_those_before_that_depend_on_the_connection() {
        let rules = [
            "direct 192.168.0.0/16",
            "tunnel intranet.example port 22",
            "block *.ads.example",
            "direct intranet.example",
        ];
        let list: Vec<Rule> = rules.iter().map(|text| parse_rule(text).unwrap()).collect();
        let told = |name| explain(&list, name);
        assert_eq!(
            told("x.ads.example"),
            "blocked (rule 3, `block *.ads.example`), unless before it rule 1, `direct 192.168.0.0/16`, where its address fits"
        );
        let direct = told("intranet.example");
        assert!(direct.starts_with("directly, "), "{direct}");
        assert!(direct.contains("(rule 4, "), "{direct}");
        assert!(direct.contains("port 22`, has its ports"), "{direct}");
        assert!(told("a.example").starts_with("through the tunnel (no rule is about it)"));
        assert_eq!(
            explain(&[], "a.example"),
            "through the tunnel (there is no rule)"
        );
    }
}
