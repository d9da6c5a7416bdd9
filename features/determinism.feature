Feature: A strict task runs alone and says so

  Background:
    Given a pool "words" with 2 slots
    And its tokens take 10 ms
    And the pool "words" is ready

  @ORCHD-TASK-11
  Scenario: started tells which it is, and a strict task reuses no context
    When alice submits and streams "ordinary":
      | prompt     | Once upon a time |
      | max_tokens | 3                |
    Then the stream "ordinary" ends with end
    And the started event of "ordinary" says:
      | determinism | best_effort |
    When alice submits and streams "strict":
      | prompt      | Once upon a time |
      | max_tokens  | 3                |
      | determinism | strict           |
    Then the stream "strict" ends with end
    And the started event of "strict" says:
      | determinism | strict |
      | kv_warmth   | false  |

  @ORCHD-TASK-11
  Scenario: Nothing else runs beside a strict task
    When alice submits "strict":
      | prompt      | Once upon a time |
      | max_tokens  | 3000             |
      | determinism | strict           |
    And "strict" is running
    And alice submits "ordinary" of priority interactive
    Then "ordinary" is queued
    And "ordinary" waits because "strict"
    When alice cancels "strict"
    Then "ordinary" is done

  @ORCHD-TASK-11
  Scenario: A strict task waits until its replica is empty
    When alice submits "ordinary":
      | prompt     | Once upon a time |
      | max_tokens | 3000             |
    And "ordinary" is running
    And alice submits "strict":
      | prompt      | Once upon a time |
      | max_tokens  | 3                |
      | determinism | strict           |
    Then "strict" is queued
    And "strict" waits because "alone"
    When alice cancels "ordinary"
    Then "strict" is done
