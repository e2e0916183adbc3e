//! Tables of others, for tests: loads and lists them without the `nft` program.

use std::io;

use super::message::{
    Batch, Expression, NF_ACCEPT, NF_DROP, NF_INET_FORWARD, NFT_MSG_GETCHAIN, NFT_MSG_GETRULE,
    NFT_MSG_NEWCHAIN, NFT_MSG_NEWRULE, NFT_MSG_NEWTABLE, NFTA_CHAIN_HOOK, NFTA_CHAIN_NAME,
    NFTA_CHAIN_POLICY, NFTA_CHAIN_TABLE, NFTA_CHAIN_TYPE, NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY,
    NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS, NFTA_RULE_TABLE, NFTA_TABLE_NAME, NLM_F_APPEND,
    NLM_F_CREATE, find_text,
};
use super::rules::interface;
use super::socket::{NftSocket, Object};

/// A step in making a foreign table.
pub(crate) enum Step {
    /// A base chain at the forward hook, with its policy.
    Base { chain: &'static str, drops: bool },
    /// A chain that others jump to.
    Plain(&'static str),
    /// A rule that accepts what comes in by an interface.
    Accept {
        chain: &'static str,
        from: &'static str,
    },
    /// A rule that drops all.
    Drop(&'static str),
}

/// Adds to a table of somebody else in the calling thread's network namespace.
pub(crate) fn load_foreign(family: u8, table: &str, steps: &[Step]) {
    let mut batch = Batch::new(family);
    batch.push(NFT_MSG_NEWTABLE, NLM_F_CREATE, |to| {
        to.text(NFTA_TABLE_NAME, table)
    });
    for step in steps {
        match step {
            Step::Base { chain, drops } => batch.push(NFT_MSG_NEWCHAIN, NLM_F_CREATE, |to| {
                to.text(NFTA_CHAIN_TABLE, table);
                to.text(NFTA_CHAIN_NAME, chain);
                to.nested(NFTA_CHAIN_HOOK, |hook| {
                    hook.number(NFTA_HOOK_HOOKNUM, NF_INET_FORWARD);
                    hook.number(NFTA_HOOK_PRIORITY, 0);
                });
                to.number(NFTA_CHAIN_POLICY, if *drops { NF_DROP } else { NF_ACCEPT });
                to.text(NFTA_CHAIN_TYPE, "filter");
            }),
            Step::Plain(chain) => batch.push(NFT_MSG_NEWCHAIN, NLM_F_CREATE, |to| {
                to.text(NFTA_CHAIN_TABLE, table);
                to.text(NFTA_CHAIN_NAME, chain);
            }),
            Step::Accept { chain, from } => {
                let rule = [interface(true, true, from), vec![Expression::Accept]].concat();
                push_rule(&mut batch, table, chain, &rule);
            }
            Step::Drop(chain) => push_rule(
                &mut batch,
                table,
                chain,
                &[Expression::Counter, Expression::Drop],
            ),
        }
    }
    NftSocket::open().unwrap().run(batch).unwrap();
}

fn push_rule(batch: &mut Batch, table: &str, chain: &str, rule: &[Expression]) {
    batch.push(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, |to| {
        to.text(NFTA_RULE_TABLE, table);
        to.text(NFTA_RULE_CHAIN, chain);
        to.nested(NFTA_RULE_EXPRESSIONS, |list| list.expressions(rule));
    });
}

/// Table, name and number of rules of every chain of the calling thread's network namespace.
pub(crate) fn chains() -> io::Result<Vec<(String, String, usize)>> {
    let socket = NftSocket::open()?;
    let rules = socket.list(NFT_MSG_GETRULE)?;
    let chains = socket.list(NFT_MSG_GETCHAIN)?;
    let text = |object: &Object, kind| {
        find_text(&object.attributes, kind)
            .unwrap_or_default()
            .to_owned()
    };
    let count = |table: &str, name: &str| {
        let of_chain = |rule: &&Object| {
            text(rule, NFTA_RULE_TABLE) == table && text(rule, NFTA_RULE_CHAIN) == name
        };
        rules.iter().filter(of_chain).count()
    };
    let named = chains
        .iter()
        .map(|chain| (text(chain, NFTA_CHAIN_TABLE), text(chain, NFTA_CHAIN_NAME)));
    Ok(named
        .map(|(table, name)| (table.clone(), name.clone(), count(&table, &name)))
        .collect())
}
