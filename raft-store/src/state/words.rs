//! Amounts as people read them.

/// Bytes as KiB, MiB or GiB with at most one decimal, rounded down (what there is) or up (what is needed).
pub fn bytes(amount: u64, round_up: bool) -> String {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let Some((unit, shift)) = UNITS.iter().find(|(_, shift)| amount >> shift > 0) else {
        return format!("{amount} B");
    };
    let scaled = u128::from(amount) * 10;
    let rest = if round_up { (1u128 << shift) - 1 } else { 0 };
    format!("{} {unit}", decimal((scaled + rest) >> shift, 10))
}

/// Thousandths of a core as cores.
pub fn cores(millis: u64) -> String {
    format!("{} CPU", decimal(u128::from(millis), 1000))
}

/// `amount / unit` without needless zeros; `unit` is a power of ten.
fn decimal(amount: u128, unit: u128) -> String {
    let (whole, mut rest) = (amount / unit, amount % unit);
    if rest == 0 {
        return whole.to_string();
    }
    let mut digits = unit.ilog10() as usize;
    while rest.is_multiple_of(10) {
        rest /= 10;
        digits -= 1;
    }
    format!("{whole}.{rest:0digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_read_well() {
        assert_eq!(bytes(2 << 30, true), "2 GiB");
        assert_eq!(bytes((14 << 30) / 10, false), "1.3 GiB");
        assert_eq!(bytes((15 << 30) / 10, false), "1.5 GiB");
        assert_eq!(bytes((2 << 30) - 1, false), "1.9 GiB");
        assert_eq!(bytes(0, true), "0 B");
        assert_eq!(bytes(u64::MAX, true), "16777216 TiB");
        assert_eq!(cores(100), "0.1 CPU");
        assert_eq!(cores(2000), "2 CPU");
        assert_eq!(cores(1050), "1.05 CPU");
    }
}
