//! Dates of the proleptic Gregorian calendar as days since 1970-01-01, over PostgreSQL's whole range
//! (4714 BC to 5874897 AD), which no date library at hand covers.

/// Beyond these there are more days than are counted.
const YEARS: std::ops::RangeInclusive<i64> = -10_000_000..=10_000_000;

/// Days since 1970-01-01; `None`: there is no such day. `year` is astronomical: 0 is 1 BC.
#[must_use]
pub fn days(year: i64, month: u32, day: u32) -> Option<i32> {
    if !YEARS.contains(&year) {
        return None;
    }
    if !(1..=12).contains(&month) || day == 0 || day > days_in_month(year, month) {
        return None;
    }
    // March-based years put the leap day at the end.
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let month = i64::from((month + 9) % 12);
    let of_year = (153 * month + 2) / 5 + i64::from(day) - 1;
    let day_of_era = of_era * 365 + of_era / 4 - of_era / 100 + of_year;
    i32::try_from(era * 146_097 + day_of_era - 719_468).ok()
}

/// Year, month and day of so many days after 1970-01-01.
#[must_use]
pub fn of_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = match from_march < 10 {
        true => from_march + 3,
        false => from_march - 9,
    };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

fn days_in_month(year: i64, month: u32) -> u32 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::{days, of_days};

    #[test]
    fn known_dates_have_their_day_numbers() {
        assert_eq!(days(1970, 1, 1), Some(0));
        assert_eq!(days(2000, 2, 29), Some(11_016));
        assert_eq!(days(1900, 2, 29), None);
        assert_eq!(days(0, 2, 29), Some(-719_469));
        // PostgreSQL: select date '4713-01-01 BC' - date '1970-01-01', date '5874897-12-31' - date '1970-01-01'.
        assert_eq!(days(-4712, 1, 1), Some(-2_440_550));
        assert_eq!(days(5_874_897, 12, 31), Some(2_145_042_905));
    }

    #[test]
    fn a_day_has_the_date_that_has_its_number() {
        for number in (-719_528..2_932_897).step_by(17) {
            let (year, month, day) = of_days(number);
            let (month, day) = (
                month.try_into().expect("small"),
                day.try_into().expect("small"),
            );
            assert_eq!(days(year, month, day).map(i64::from), Some(number));
        }
    }
}
