//! Which metadata contexts the queries of a client mean ("Metadata querying").

use crate::agreed::{Contexts, MetaContext};

/// The contexts to list: all without a query, else those that are named, or whose namespace is ("base:").
pub(super) fn listed(queries: &[String]) -> Contexts {
    let named = |context: &MetaContext| {
        let name = context.name();
        queries.is_empty()
            || queries.iter().any(|query| {
                query == name
                    || query.strip_suffix(':').is_some_and(|space| {
                        name.split_once(':').is_some_and(|(own, _)| own == space)
                    })
            })
    };
    MetaContext::ALL.into_iter().filter(named).collect()
}

/// The contexts to select: those that are named in full. Wildcards and what is not known select nothing.
pub(super) fn selected(queries: &[String]) -> Contexts {
    let named = |context: &MetaContext| queries.iter().any(|query| query == context.name());
    MetaContext::ALL.into_iter().filter(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(contexts: Contexts) -> Vec<&'static str> {
        contexts.iter().map(MetaContext::name).collect()
    }

    #[test]
    fn queries_mean_what_the_document_says() {
        let (base, held) = ("base:allocation", "epochgate:held");
        for (queries, listing, selection) in [
            (&[][..], &[base, held][..], &[][..]),
            (&["base:"], &[base], &[]),
            (&["epochgate:", "base:"], &[base, held], &[]),
            (&["base:allocation"], &[base], &[base]),
            (&[held, held, base], &[base, held], &[base, held]),
            (&["base:other", "qemu:dirty-bitmap:x"], &[], &[]),
            (&["", ":", "base", "allocation", "base:alloc"], &[], &[]),
        ] {
            let queries: Vec<String> = queries.iter().map(|query| (*query).to_owned()).collect();
            assert_eq!(names(listed(&queries)), listing, "{queries:?}");
            assert_eq!(names(selected(&queries)), selection, "{queries:?}");
        }
    }
}
