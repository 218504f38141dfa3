//! The checker over protocols that are wrong on purpose: each must be found, by the rule that is meant to find it.

use model::check::{Until, check};
use model::mutation::Mutation;
use model::scenarios::finding;

#[test]
fn every_mistake_is_found() {
    for mutation in Mutation::ALL {
        let (protocol, rule) = finding(mutation);
        let findings = check(protocol, Until::Broken(rule), 1, None);
        let found = findings.broken.iter().find(|(broken, _)| *broken == rule);
        let Some((_, path)) = found else {
            panic!("{mutation:?} breaks {rule:?}, and nothing was found: {findings:?}");
        };
        assert!(!path.is_empty());
    }
}

/// What is no mistake for the right protocol must not be one for the checker either: without the mutation, the same bounds
/// find nothing.
#[test]
fn the_same_bounds_find_nothing_without_the_mistake() {
    for mutation in Mutation::ALL {
        let (mut protocol, _) = finding(mutation);
        protocol.mutation = None;
        let findings = check(protocol, Until::Explored, 2, None);
        assert_eq!(findings.broken, [], "{mutation:?}");
    }
}
