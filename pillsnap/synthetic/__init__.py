"""The embedded demo data set: invented drugs, drawn pills, a studio and a phone camera."""
