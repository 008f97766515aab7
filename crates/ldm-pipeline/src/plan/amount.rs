//! Amounts of memory as text.

/// Reads an amount of memory such as `16GiB`, `500MB` or `1.5G`; `G` is `GiB`, a bare number bytes.
///
/// # Errors
/// What is wrong with it.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let power = |base: u64, exponent: u32| Some(base.pow(exponent) as f64);
    let unit = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => Some(1.0),
        "k" | "kib" => power(1024, 1),
        "m" | "mib" => power(1024, 2),
        "g" | "gib" => power(1024, 3),
        "t" | "tib" => power(1024, 4),
        "kb" => power(1000, 1),
        "mb" => power(1000, 2),
        "gb" => power(1000, 3),
        "tb" => power(1000, 4),
        _ => None,
    };
    match number.parse::<f64>().ok().zip(unit) {
        Some((number, unit)) if number > 0.0 && number * unit < 1e18 => Ok((number * unit) as u64),
        _ => Err("an amount of memory has the form 16GiB, 500MB or 1.5G".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read() {
        assert_eq!(parse_bytes("16GiB"), Ok(16 << 30));
        assert_eq!(parse_bytes(" 1.5 g "), Ok(3 << 29));
        assert_eq!(parse_bytes("500MB"), Ok(500_000_000));
        assert_eq!(parse_bytes("4096"), Ok(4096));
        for wrong in [
            "",
            "lots",
            "-1G",
            "0",
            "1..5G",
            "16 gallons",
            "GiB",
            "nan",
            "9e9",
        ] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
    }
}
