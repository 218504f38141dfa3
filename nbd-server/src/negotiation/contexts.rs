//! Which metadata contexts the queries of a client mean ("Metadata querying"), as far as every export has them. Those with a point in time
//! are a matter of the export: whoever drives the handshake asks it.

use crate::agreed::{Contexts, MAX_CHANGED, MetaContext, Slot};

/// The contexts to list: all without a query, else those that are named, or whose namespace is ("base:").
pub(super) fn listed(queries: &[String]) -> Vec<&'static str> {
    let named = |name: &&str| {
        queries.is_empty()
            || queries.iter().any(|query| {
                query == name
                    || query.strip_suffix(':').is_some_and(|space| {
                        name.split_once(':').is_some_and(|(own, _)| own == space)
                    })
            })
    };
    names().filter(named).collect()
}

/// The contexts to select: those that are named in full. Wildcards and what is not known select nothing.
pub(super) fn selected(queries: &[String]) -> Contexts {
    let named = |context: &MetaContext| {
        let name = context.name();
        name.is_some_and(|name| queries.iter().any(|query| query == name))
    };
    MetaContext::FIXED.into_iter().filter(named).collect()
}

/// The queries to ask the export about, each once.
pub(super) fn of_export(queries: &[String]) -> Vec<String> {
    let mut asked: Vec<String> = Vec::new();
    for query in queries {
        if !names().any(|name| query == name) && !asked.contains(query) {
            asked.push(query.clone());
        }
    }
    asked
}

/// Places for contexts that the export has found: the first of them, as many as there are.
pub(super) fn placed(found: &[String]) -> impl Iterator<Item = (MetaContext, &str)> {
    let slots = Slot::ALL.into_iter().map(MetaContext::Changed);
    slots.zip(found.iter().take(MAX_CHANGED).map(String::as_str))
}

fn names() -> impl Iterator<Item = &'static str> {
    MetaContext::FIXED.into_iter().filter_map(MetaContext::name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(contexts: Contexts) -> Vec<&'static str> {
        contexts.iter().filter_map(MetaContext::name).collect()
    }

    #[test]
    fn queries_mean_what_the_document_says() {
        let (base, held) = ("base:allocation", "epochgate:held");
        let other = ["base:other", "qemu:dirty-bitmap:x"];
        for (queries, listing, selection, asked) in [
            (&[][..], &[base, held][..], &[][..], &[][..]),
            (&["base:"], &[base], &[], &["base:"]),
            (
                &["epochgate:", "base:"],
                &[base, held],
                &[],
                &["epochgate:", "base:"],
            ),
            (&["base:allocation"], &[base], &[base], &[]),
            (&[held, held, base], &[base, held], &[base, held], &[]),
            (&other, &[], &[], &other),
            (&[other[0], held, other[0]], &[held], &[held], &other[..1]),
            (
                &["", ":", "base", "base:alloc"],
                &[],
                &[],
                &["", ":", "base", "base:alloc"],
            ),
        ] {
            let queries: Vec<String> = queries.iter().map(|query| (*query).to_owned()).collect();
            assert_eq!(listed(&queries), listing, "{queries:?}");
            assert_eq!(names(selected(&queries)), selection, "{queries:?}");
            assert_eq!(of_export(&queries), asked, "{queries:?}");
        }
    }

    #[test]
    fn what_is_found_beyond_the_places_has_none() {
        let found: Vec<String> = (0..9).map(|number| format!("x:{number}")).collect();
        let placed: Vec<_> = placed(&found)
            .map(|(context, name)| (context.id(), name))
            .collect();
        assert_eq!(placed, [(3, "x:0"), (4, "x:1"), (5, "x:2"), (6, "x:3")]);
    }
}
