//! Sizes as people write them: `512M`, `20G`.

/// A number of bytes, plain or with one of the units K, M, G, T, P (powers of 1024; `GiB` and `G` are the same).
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text.get(digits.len()..).unwrap_or_default();
    let shift = match unit.to_ascii_uppercase().trim_end_matches("IB") {
        "" | "B" if unit.len() < 2 => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        "P" => 50,
        _ => return Err(format!("'{unit}' is no unit; take K, M, G, T or P")),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("'{text}' is no size; write it as 512M or 20G, say"))?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("{text} is more than any disk can have"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_powers_of_1024() {
        assert_eq!(parse("512"), Ok(512));
        assert_eq!(parse("512B"), Ok(512));
        assert_eq!(parse("4k"), Ok(4096));
        assert_eq!(parse("20G"), Ok(20 << 30));
        assert_eq!(parse("20GiB"), Ok(20 << 30));
        assert_eq!(parse("1T"), Ok(1 << 40));
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "G",
            "-1",
            "1.5G",
            "20 G",
            "20X",
            "20iB",
            "99999999P",
            "20GB",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
