from datum_router.testing.balancer import BalancerConformance


class TestFirstHealthy(BalancerConformance):
    spec_name = "first-healthy"
