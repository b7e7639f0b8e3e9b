// Whose CRDs the chart's tests install, to validate objects that the chart or an example makes for other operators. Nothing
// is compiled.
module tonnage.dev/hack/chart/foreign

go 1.24.0

require (
	github.com/cert-manager/cert-manager v1.18.2
	github.com/kserve/kserve v0.17.0
	github.com/prometheus-operator/prometheus-operator v0.85.0
)
